"""The command `convert`: what it writes and leaves out, how it goes on after kill -9, and that nets learn from it."""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
from support import sources
from support.tiny_nets import no_file_longer_than

from multilabel_softmax_loss.commands import convert as command
from multilabel_softmax_loss.data import conversion
from multilabel_softmax_loss.data.datum import parse_datum
from multilabel_softmax_loss.data.proof import decode_datum
from multilabel_softmax_loss.data.writers import read_index
from multilabel_softmax_loss.errors import UsageError

CLASSES = 4
KILLS = int(os.environ.get("KILLS", 3))


def convert(*words, caffe=False):
    """Run the command in this process; without the proof in Caffe unless asked for."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = parser.parse_args([*map(str, words), "--jobs", "1"])
    arguments.command = "convert"
    proof, command.prove_in_caffe = command.prove_in_caffe, command.prove_in_caffe if caffe else lambda *_: 0
    try:
        return command.run(arguments)
    finally:
        command.prove_in_caffe = proof


def listing(folder):
    """The bytes of all files of a folder but those that name it."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and path.name not in ("lock.mdb", ".lock"):
            content = path.read_bytes().replace(str(folder).encode(), b"DIR")
            found[str(path.relative_to(folder))] = content.replace(f'"{folder.name}"'.encode(), b'"DIR"')
    return found


def read_lmdb(path):
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as reader:
        return [(key, parse_datum(value), value) for key, value in reader.cursor()]


def labels_in(image):
    """The labels that an image is made of, (channels, H, W) as written."""
    patches = image[0, 6::12, 6::12].ravel()
    return (patches > 128).astype(np.float32)


def pairs(folder, split, encoding="png"):
    """(image, labels) of each key of the two LMDBs of a split."""
    images, labels = (read_lmdb(Path(folder) / f"{split}_{what}") for what in ("images", "labels"))
    assert [key for key, *_ in images] == [key for key, *_ in labels]
    plan = argparse.Namespace(recipe=argparse.Namespace(gray=False))
    return [(decode_datum(image[2], plan), label[1]["floats"]) for image, label in zip(images, labels)]


@pytest.mark.parametrize("target", ["lmdb", "hdf5", "index"])
def test_a_file_that_may_not_become_so_long_is_told_and_the_conversion_goes_on_later(tmp_path, target):
    source, out = sources.tagged(tmp_path, 40), tmp_path / "out"
    words = [source, "--out", out, "--size", 24, "--to", target, "--split", 0]
    limit = no_file_longer_than(2000 if target == "index" else 6000)
    with limit, pytest.raises(UsageError, match=r"out\S* cannot be written: File too large \(the limit of ulimit -f\)"):
        convert(*words)
    mine = out / ".my-notes.txt"
    mine.write_text("which no killed run has left")
    assert convert(*words, "--resume") == 0
    assert mine.exists()


def test_images_and_labels_belong_together_with_bad_images_between(tmp_path):
    source = sources.tagged(tmp_path, 60)
    for k in (3, 17, 40):
        path = tmp_path / "photos" / f"{k:03d}.png"
        path.write_bytes(path.read_bytes()[: 60 * (k != 3)])
    (tmp_path / "photos" / "050.png").unlink()
    out = tmp_path / "out"
    assert convert(source, "--out", out, "--size", 24, "--encode", "png", "--max-bad", 4) == 0
    found = [*pairs(out, "train"), *pairs(out, "val")]
    assert len(found) == 56
    for image, labels in found:
        assert np.array_equal(labels_in(image), labels)
    report = json.loads((out / "report.json").read_text())
    reasons = {Path(path).name: reason for bad in report["bad_images"].values() for path, reason in bad.items()}
    assert set(reasons) == {"003.png", "017.png", "040.png", "050.png"}
    assert reasons["003.png"] == "0 bytes"
    assert reasons["050.png"] == "missing"
    for split in ("train", "val"):
        index = read_index(str(out / f"{split}_index.txt"))
        rows = [labels for _, labels in pairs(out, split)]
        assert np.array_equal([index.dense(k) for k in range(len(index.paths))], rows)
        assert report["images"][split] == len(rows)
        assert all(os.path.isfile(path) for path in index.paths)
    assert (out / "classes.txt").read_text().split() == ["c0", "c1", "c2", "c3"]


def test_too_many_bad_images_end_the_command(tmp_path):
    source = sources.tagged(tmp_path, 20)
    for k in (3, 4):
        (tmp_path / "photos" / f"{k:03d}.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"2 images are bad, and --max-bad allows 1: .*003.png: 0 bytes"):
        convert(source, "--out", tmp_path / "out", "--max-bad", 1, "--size", 24)
    with pytest.raises(UsageError, match=r"is there already and is not overwritten; --resume"):
        convert(source, "--out", tmp_path / "out")
    assert convert(source, "--out", tmp_path / "out", "--max-bad", "10%", "--size", 24, "--resume") == 0
    with pytest.raises(UsageError, match=r"--bad-images is error.*or mend them and --resume\."):
        convert(source, "--out", tmp_path / "other", "--bad-images", "error", "--size", 24)
    for k in (3, 4):
        sources.write_image(tmp_path / "photos" / f"{k:03d}.png", np.full((24, 24, 3), 20 * k, np.uint8))
    assert convert(source, "--out", tmp_path / "other", "--bad-images", "error", "--size", 24, "--resume") == 0
    assert len(pairs(tmp_path / "other", "train")) == 18


def test_an_image_that_no_jpeg_can_hold_is_bad_and_the_kinds_are_counted(tmp_path, capsys):
    source = sources.tagged(tmp_path, 4)
    sources.write_image(tmp_path / "photos" / "001.png", np.zeros((8, 65501, 3), np.uint8))
    for k in (2, 3):
        (tmp_path / "photos" / f"00{k}.png").write_text(f"{k} is no image")
    convert(source, "--out", tmp_path / "out", "--short-side", 8, "--max-bad", 3, "--split", 0)
    out = capsys.readouterr().out
    assert "3 bad images left out (no image 2, too large for jpg 1): " in out
    assert "001.png: too large for jpg: 65501 x 8 when resized" in out


def test_images_that_were_left_out_are_not_said_to_be_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "BLOCK", 4)
    source = sources.tagged(tmp_path, 20)
    for image in (tmp_path / "photos").iterdir():
        image.write_bytes(b"")
    with pytest.raises(UsageError, match=r"8 images are bad.*or mend them and begin anew\."):
        convert(source, "--out", tmp_path / "out", "--max-bad", 5, "--size", 24)


def test_means_are_those_of_the_training_images(tmp_path):
    from multilabel_softmax_loss.data.datum import fields

    source = sources.tagged(tmp_path, 30)
    convert(source, "--out", tmp_path / "out", "--size", 24, "--encode", "raw")
    images = np.array([image for image, _ in pairs(tmp_path / "out", "train")])
    mean = json.loads((tmp_path / "out" / "report.json").read_text())["mean"]
    assert mean == pytest.approx(images.mean(axis=(0, 2, 3)), abs=6e-4)
    blob = dict(fields((tmp_path / "out" / "mean.binaryproto").read_bytes()))
    assert [blob[k] for k in (1, 2, 3, 4)] == [1, 3, 24, 24]
    assert np.allclose(np.frombuffer(blob[5], "<f4"), images.mean(axis=0).ravel())
    convert(source, "--out", tmp_path / "short", "--short-side", 24, "--gray")
    assert json.loads((tmp_path / "short" / "report.json").read_text())["mean"] == pytest.approx(mean[:1], abs=2e-3)


@pytest.mark.parametrize("to", ["lmdb", "hdf5", "index"])
def test_twice_with_one_seed_is_the_same_bytes(to, tmp_path):
    source = sources.tagged(tmp_path, 50)
    for name in ("one", "two"):
        convert(source, "--out", tmp_path / name, "--to", to, "--size", 24)
    assert listing(tmp_path / "one") == listing(tmp_path / "two")
    convert(source, "--out", tmp_path / "three", "--to", to, "--size", 24, "--seed", 1)
    assert listing(tmp_path / "three") != listing(tmp_path / "one")
    convert(source, "--out", tmp_path / "plain", "--to", to, "--size", 24, "--no-shuffle", "--split", 0)
    paths = read_index(str(tmp_path / "plain" / "train_index.txt")).paths
    assert [Path(path).name for path in paths] == [f"{k:03d}.png" for k in range(50)]


IN_SMALL_BLOCKS = """
import signal, sys
from multilabel_softmax_loss.errors import end_interrupted
signal.signal(signal.SIGINT, lambda *_: end_interrupted("convert"))  # as the program does before all else
from multilabel_softmax_loss.commands import convert
from multilabel_softmax_loss.data import conversion
from multilabel_softmax_loss.__main__ import main
conversion.BLOCK = 4
convert.prove_in_caffe = lambda *_: 0
sys.exit(main(["convert", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("to", ["lmdb", "hdf5"])
def test_kills_at_random_moments_leave_the_same_bytes(to, tmp_path):
    source = sources.tagged(tmp_path, 80)
    (tmp_path / "photos" / "007.png").write_bytes(b"")
    words = ["--to", to, "--size", "24", "--jobs", "2", "--max-bad", "2%"]

    def start(out, *more):
        code = [sys.executable, "-c", IN_SMALL_BLOCKS, source, "--out", str(tmp_path / out), *words, *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(code, text=True, start_new_session=True, **pipes)

    whole = start("whole")
    assert whole.wait() == 0, whole.communicate()
    whole.communicate()
    draw = random.Random(to)
    kills = 0
    while True:
        process = start("killed", *(["--resume"] if kills else []))
        if kills < KILLS:
            printed = process.stdout.readline()  # it has begun
            wait_for_more(tmp_path / "killed", draw.randrange(1, 5), process)
            asked = kills == 1
            os.killpg(process.pid, signal.SIGINT) if asked else process.send_signal(signal.SIGKILL)
            kills += process.poll() is None or bool(printed)
            error = process.communicate()[1]
            if asked and process.returncode == 130:
                assert error.count("interrupted") == error.count("\n") == 1  # what decodes says nothing
            if process.returncode in (-signal.SIGKILL, 130):
                continue
        error = process.communicate()[1]
        assert process.returncode == 0, error
        break
    assert listing(tmp_path / "killed") == listing(tmp_path / "whole")


def wait_for_more(folder, changes, process):
    """Until the record of progress has been replaced so many times, or the process has ended."""
    path, seen = folder / conversion.PROGRESS, set()
    while process.poll() is None and len(seen) < changes:
        try:
            seen.add(path.stat().st_mtime_ns)
        except FileNotFoundError:
            seen.add(None)


def test_resuming_compares_options_and_source(tmp_path):
    source = sources.tagged(tmp_path, 20)
    (tmp_path / "photos" / "003.png").write_bytes(b"")
    words = [source, "--out", tmp_path / "out", "--size", 24]
    with pytest.raises(UsageError, match="1 images are bad"):
        convert(*words, "--max-bad", 0)
    with pytest.raises(UsageError, match="begun with seed = 0, and now it is 3"):
        convert(*words, "--resume", "--seed", 3)
    assert convert(*words, "--resume", "--max-bad", 1) == 0
    assert convert(*words, "--resume") == 0  # as it is complete
    with pytest.raises(UsageError, match="begun with gray = False, and now it is True"):
        convert(*words, "--resume", "--gray")
    Path(source).write_text(Path(source).read_text().replace("No Finding", "c1"))
    with pytest.raises(UsageError, match="the source has changed"):
        convert(*words, "--resume")
    with pytest.raises(UsageError, match=r"holds out, photos, tags.csv and no conversion"):
        convert(source, "--out", tmp_path, "--resume")


def test_reading_back_finds_what_is_not_as_it_was_written(tmp_path, monkeypatch):
    source, image = sources.tagged(tmp_path, 20), tmp_path / "photos" / "003.png"
    words = [source, "--images", image.parent, "--out", tmp_path / "out", "--size", 24, "--split", 0]
    with monkeypatch.context() as patch:
        patch.setattr(command.proof, "check", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # all is written, and not yet read back
            convert(*words)
    words.append("--resume")
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(UsageError, match=r"003.png was written, and is bad now: missing. Put it back and --resume"):
        convert(*words)
    sources.write_image(image, sources.picture([0, 1, 2, 3], 4))
    with pytest.raises(UsageError, match=r"003.png was written with other pixels than it has"):
        convert(*words)
    image.write_bytes(content)
    rows = [row for _, _, row in read_lmdb(tmp_path / "out" / "train_labels")]

    def write_first(row):
        path = str(tmp_path / "out" / "train_labels")
        with lmdb.open(path, lock=False) as environment, environment.begin(write=True) as transaction:
            transaction.put(b"0000000000", row)

    write_first(next(row for row in rows if row != rows[0]))
    with pytest.raises(UsageError, match=r"the labels of train image 0 are not those of"):
        convert(*words)
    write_first(rows[0])
    assert convert(*words) == 0


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    source = sources.tagged(tmp_path, 40)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
    code = [sys.executable, "-c", limit + IN_SMALL_BLOCKS, source, "--out", str(tmp_path / "out"), "--encode", "raw"]
    process = subprocess.run([*code, "--size", "24", "--jobs", "1"], capture_output=True, text=True)
    assert process.returncode == 2
    assert "cannot be written" in process.stderr
    assert "--resume" in process.stderr
    assert "Traceback" not in process.stderr
    monkeypatch.setattr(conversion, "BLOCK", 4)
    assert convert(source, "--out", tmp_path / "out", "--encode", "raw", "--size", 24, "--resume") == 0
    assert len(pairs(tmp_path / "out", "train")) == 36


def test_the_map_grows_by_itself(tmp_path, monkeypatch):
    from multilabel_softmax_loss.data import writers

    monkeypatch.setattr(writers, "map_size", lambda size: 1 << 15)
    convert(sources.tagged(tmp_path, 60), "--out", tmp_path / "out", "--size", 24, "--encode", "raw")
    assert len(pairs(tmp_path / "out", "train")) == 54


def test_duplicates_stand_on_one_side_and_are_told(tmp_path):
    source = sources.tagged(tmp_path, 200, CLASSES, unique=False)
    convert(source, "--out", tmp_path / "out", "--size", 24)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["duplicates"]["groups"] == 16  # one for each set of labels
    assert report["duplicates"]["across_splits"] == []
    assert report["duplicates"]["with_different_labels"] == []


def test_a_given_split_is_kept_and_duplicates_across_it_are_told(tmp_path):
    source = sources.tagged(tmp_path, 60, unique=False)
    names = [f"{k:03d}" for k in range(0, 60, 3)]
    listed = sources.write_text(tmp_path / "val.txt", "\n".join(names))
    convert(source, "--out", tmp_path / "out", "--size", 24, "--split-file", listed, "--no-shuffle")
    index = read_index(str(tmp_path / "out" / "val_index.txt"))
    assert [Path(path).stem for path in index.paths] == names
    assert json.loads((tmp_path / "out" / "report.json").read_text())["duplicates"]["across_splits"]
    for mark, header in ((" ", ""), (",", "image_id,partition\n")):  # CelebA's own, and that of Kaggle
        text = header + "".join(f"{k:03d}.png{mark}{k % 3}\n" for k in range(60))
        convert(source, "--out", tmp_path / mark, "--split-file", sources.write_text(tmp_path / "three.txt", text))
        assert len(read_index(str(tmp_path / mark / "test_index.txt")).paths) == 20
    wrong = sources.write_text(tmp_path / "wrong.txt", "x.jpg\ny.jpg\n")
    with pytest.raises(UsageError, match=r"lists x.jpg, y.jpg, and no image"):
        convert(source, "--out", tmp_path / "w", "--split-file", wrong)


def test_a_split_file_that_cannot_be_meant_so_is_a_sentence(tmp_path, capsys):
    source = sources.tagged(tmp_path, 12)
    words = [source, "--out", tmp_path / "out", "--dry-run", "--split-file"]
    convert(*words, sources.write_text(tmp_path / "typo.txt", "000.png\n0001.png\n"))
    assert "typo.txt are no image's: 0001.png." in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"has 000.png in both train and val"):
        convert(*words, sources.write_text(tmp_path / "twice.txt", "000.png train\n000.png val\n"))
    with pytest.raises(UsageError, match=r"empty.txt is empty"):
        convert(*words, sources.write_text(tmp_path / "empty.txt", "\n"))
    with pytest.raises(UsageError, match=r"does not list \S*001.png; expected train, val or test"):
        convert(*words, sources.write_text(tmp_path / "short.txt", "000.png train\n"))
    sources.write_images(tmp_path / "photos", ["x/a.png", "y/a.png"])
    listed = sources.write_text(tmp_path / "b.csv", "image,tags\nx/a.png,c\ny/a.png,d\n")
    words = [listed, "--images", tmp_path / "photos", *words[1:]]
    with pytest.raises(
        UsageError, match=r"lists a, which is both \S*x/a.png and \S*y/a.png; expected more of its path"
    ):
        convert(*words, sources.write_text(tmp_path / "a.txt", "a\n"))
    convert(*words, sources.write_text(tmp_path / "a.txt", "y/a.png\n"))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--size", "0"], "--size is '0'"),
        (["--size", "64x7"], "would be 7 wide or high; expected at least 8"),
        (["--short-side", "1"], "would be 1 wide or high; expected at least 8"),
        (["--size", "axb"], "--size is 'axb'"),
        (["--encode", "tiff"], "--encode is 'tiff'"),
        (["--encode", "jpg:101"], "quality from 1 to 100"),
        (["--to", "hdf5", "--encode", "png"], "--encode is for LMDBs"),
        (["--to", "hdf5", "--short-side", "20"], "images of one size"),
        (["--to", "hdf5", "--out", "my photos"], "--out 'my photos' has a blank, at which Caffe would split"),
        (["--max-bad", "-1"], "--max-bad is '-1'"),
        (["--images", "/dev/null/nowhere"], "is no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_are_sentences(words, message, tmp_path):
    source = sources.tagged(tmp_path, 3)
    with pytest.raises(UsageError, match=message):
        convert(source, "--out", tmp_path / "out", *[f"{words[0]}={words[1]}", *words[2:]])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_images_none_of_which_is_there_are_asked_for(words, tmp_path):
    source = sources.write_text(tmp_path / "a.csv", "image,tags\na.jpg,x\n")
    with pytest.raises(UsageError, match=r"none of the images is there, such as \S*a.jpg; say with --images"):
        convert(source, "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    source = sources.tagged(tmp_path, 20)
    (tmp_path / "photos" / "003.png").unlink()
    assert convert(source, "--out", tmp_path / "out", "--dry-run") == 0
    printed = capsys.readouterr().out
    for text in (
        "images      20",
        "classes     4",
        "split       train 18, val 2",
        "missing     1 images",
        "No Finding",
    ):
        assert text in printed
    assert not (tmp_path / "out").exists()
