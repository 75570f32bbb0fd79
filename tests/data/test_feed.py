"""What the image data layer delivers: which image when, decoded how, and from any place of the stream."""

import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from support import sources

from multilabel_softmax_loss.data.ahead import Ahead
from multilabel_softmax_loss.data.feed import Feed, ImageDataOptions
from multilabel_softmax_loss.data.source import gather
from multilabel_softmax_loss.data.writers import read_index, write_index
from multilabel_softmax_loss.errors import UsageError
from multilabel_softmax_loss.nets.image_index import count_index

COUNT = 10


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """An index of ten images made of their labels."""
    folder = tmp_path_factory.mktemp("images")
    labels = gather([sources.tagged(folder, COUNT)]).labels
    write_index(str(folder / "index.txt"), labels, range(COUNT))
    return str(folder / "index.txt")


def feed(index, train=True, share=(0, 1), **options):
    options = {"batch_size": 4, "new_height": 24, "new_width": 24, **options}
    return Feed(ImageDataOptions.make({"source": index, **options}), train, share)


def rows(feed, batches, start=0):
    return [row for batch in range(start, start + batches) for row in feed.tasks(batch)[0]]


def test_each_epoch_has_each_image_once_in_an_order_of_its_own(index):
    found = rows(feed(index), 5 * COUNT // 4)
    epochs = [found[k : k + COUNT] for k in range(0, 5 * COUNT, COUNT)][:4]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert found == rows(feed(index), 5 * COUNT // 4)
    assert found != rows(feed(index, seed=1), 5 * COUNT // 4)
    assert rows(feed(index, shuffle=False), 5) == [*range(COUNT)] * 2


def test_a_round_of_the_test_phase_is_in_order_and_ends_with_a_smaller_batch(index):
    test = feed(index, train=False)
    assert [test.size(batch) for batch in range(6)] == [4, 4, 2, 4, 4, 2]
    assert rows(test, 6) == [*range(COUNT)] * 2


def test_shares_of_several_ranks_make_up_the_batch_of_one(index):
    whole = [feed(index, batch_size=8).tasks(batch) for batch in range(7)]
    parts = [feed(index, batch_size=4, share=(rank, 2)) for rank in range(2)]
    for batch, (found, tasks) in enumerate(whole):
        shares = [part.tasks(batch) for part in parts]
        assert found == [row for pair in zip(*(share[0] for share in shares)) for row in pair]
        assert tasks == [task for pair in zip(*(share[1] for share in shares)) for task in pair]


def deliver(ahead, batches):
    """(images, labels) of some batches."""
    found = []
    for _ in range(batches):
        images = np.full((ahead.size, *ahead.options.shape), np.nan, np.float32)
        labels = np.full((ahead.size, ahead.feed.width), np.nan, np.float32)
        ahead.deliver(images, labels)
        found.append((images, labels))
    return found


def assert_same(one, other):
    assert len(one) == len(other)
    for pair, pair_of_other in zip(one, other):
        for array, array_of_other in zip(pair, pair_of_other):
            assert np.array_equal(array, array_of_other)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_and_labels_belong_together_and_any_place_can_be_gone_to(workers, index):
    options = {"mirror": False, "mean_value": [1.5], "scale": 0.5}
    ahead = Ahead(feed(index, **options), workers)
    batches = deliver(ahead, 7)
    for images, labels in batches:
        for image, row in zip(images, labels):
            assert np.array_equal((image[0, 6::12, 6::12].ravel() / 0.5 + 1.5) > 128, row)
    later = Ahead(feed(index, **options), workers)
    deliver(later, 1)
    later.skip(4)
    assert_same(deliver(later, 2), batches[5:])
    ahead.close()
    later.close()


def test_batches_of_others_are_not_decoded(index):
    ahead, here = (Ahead(feed(index, crop_size=17), workers) for workers in (2, 0))
    for _ in range(20):
        assert_same(deliver(ahead, 1), deliver(here, 1))
        ahead.skip(2)
        here.skip(2)
    assert ahead.jobs <= 20 + 2 * len(ahead.slots)
    ahead.close()


def test_processes_deliver_what_this_one_would(index):
    options = {"crop_size": 17, "mirror": True}
    ahead, here = (Ahead(feed(index, **options), workers) for workers in (2, 0))
    assert_same(deliver(ahead, 9), deliver(here, 9))
    ahead.close()


def test_crops_and_mirroring_are_drawn_in_train_and_none_in_test(index):
    plain = dict(zip(range(COUNT), deliver(Ahead(feed(index, False, batch_size=10)), 1)[0][0]))
    centres = deliver(Ahead(feed(index, False, batch_size=10, crop_size=17, mirror=True), 0), 1)[0][0]
    for row, image in enumerate(centres):
        assert np.array_equal(image, plain[row][:, 3:20, 3:20])
    places, mirrored = set(), set()
    train = feed(index, crop_size=22, mirror=True)
    ahead = Ahead(train, 0)
    for batch in range(25):
        images, _ = deliver(ahead, 1)[0]
        for row, image in zip(train.tasks(batch)[0], images):
            fits = [
                (top, left, flip)
                for top in range(3)
                for left in range(3)
                for flip in (1, -1)
                if np.array_equal(image[:, :, ::flip], plain[row][:, top : top + 22, left : left + 22])
            ]
            assert fits
            places.update((top, left) for top, left, _ in fits[:1])
            mirrored.update(flip for *_, flip in fits[:1])
    assert len(places) == 9
    assert mirrored == {1, -1}


def test_lists_of_classes(index):
    dense = feed(index, label_format="dense")
    lists = feed(index, label_format="indices")
    for row in range(COUNT):
        found = lists.label_rows([row])[0]
        assert np.array_equal(found[found >= 0], np.flatnonzero(dense.label_rows([row])[0]))
    assert lists.width == max(int(dense.label_rows([row]).sum()) for row in range(COUNT))


def test_a_bad_image_and_a_dead_process_are_sentences(tmp_path):
    source = sources.tagged(tmp_path, 4)
    labels = gather([source]).labels
    write_index(str(tmp_path / "i.txt"), labels, range(4))
    ahead = Ahead(feed(str(tmp_path / "i.txt"), batch_size=1), 1)
    deliver(ahead, 1)
    os.kill(ahead.processes[0].pid, signal.SIGKILL)
    with pytest.raises(UsageError, match="a process that decodes images died"):
        deliver(ahead, 4)  # more than may be ready already
    (process,) = ahead.processes
    process.wait()
    process.stdin.write(b"never to be read")
    ahead.close()
    assert process.stdout.closed
    (tmp_path / "photos" / "002.png").write_bytes(b"")
    for workers in (0, 1):
        ahead = Ahead(feed(str(tmp_path / "i.txt")), workers)
        with pytest.raises(UsageError, match=r"002.png, listed in .*i.txt, is bad \(0 bytes\)"):
            deliver(ahead, 1)
        ahead.close()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"new_height": 0}, "one of 'new_height' and 'new_width'"),
        ({"new_height": 0, "new_width": 0}, "images of a batch need one size"),
        ({"crop_size": 25}, "'crop_size' = 25; expected at most 24"),
        ({"mean_value": [1, 2]}, "2 numbers in 'mean_value'; expected 1 or 3"),
        ({"batch_size": 0}, "option 'batch_size' = 0; expected a whole number >= 1"),
        ({"seed": 2**32}, "option 'seed' = 4294967296; expected a whole number <= 4294967295"),
        ({"new_width": 2**40}, "a whole number <= 2147483647"),
        ({"batchsize": 1}, "did you mean 'batch_size'"),
        ({"source": ""}, "no option 'source'"),
        ({"source": "/dev/null/nowhere"}, "/dev/null/nowhere cannot be read"),
    ],
)
def test_options_that_cannot_be(options, message, index):
    with pytest.raises(ValueError, match=message):
        feed(options.pop("source", index), **options)


def test_an_index_keeps_every_name_and_value(tmp_path):
    names = ["a b.jpg", "tab\there.jpg", 'q"uote.jpg', '"quoted".jpg', "日本.jpg", "new\nline.jpg"]
    labels = gather([sources.list_values(tmp_path)]).labels
    odd = labels._replace(
        paths=[str(tmp_path / "x" / name) for name in names],
        start=np.array([0, 2, 2, 3, 3, 3, 4]),
        columns=np.array([0, 3, 2, 1], np.int32),
        values=np.array([1, -1, 0.1, 1], np.float32),
    )
    write_index(str(tmp_path / "i.txt"), odd, range(len(names)))
    found = read_index(str(tmp_path / "i.txt"))
    assert [os.path.normpath(path) for path in found.paths] == odd.paths
    assert [found.dense(k).tolist() for k in range(6)] == [odd.dense(k).tolist() for k in range(6)]
    edited = (tmp_path / "i.txt").read_bytes().replace(b"\n", b"\r\n\r\n").rstrip()  # by an editor of Windows
    (tmp_path / "edited.txt").write_bytes(b"\xef\xbb\xbf" + edited)
    again = read_index(str(tmp_path / "edited.txt"))
    assert again.paths == found.paths
    assert np.array_equal(again.values, found.values)
    options = SimpleNamespace(param_str=json.dumps({"source": str(tmp_path / "edited.txt")}))
    assert count_index(SimpleNamespace(name="data", python_param=options)) == len(names)
    for given, told in (("{}", "None"), ('{"source": 0}', "0"), ('{"source": ""}', "''")):
        with pytest.raises(UsageError, match=f"has source {told} in its param_str; expected the name of an index"):
            count_index(SimpleNamespace(name="data", python_param=SimpleNamespace(param_str=given)))
    with pytest.raises(UsageError, match="is no index of images and labels"):
        read_index(sources.write_text(tmp_path / "other.txt", "a.jpg 1\n"))


@pytest.mark.parametrize(
    "head, line, message",
    [
        ("classes=3 absent=0", "a.jpg 1", r"line 2 is 'a.jpg 1'; expected an image, a tab, and classes"),
        ("classes=3 absent=0", "a.jpg\t1,2", r"line 2 is 'a.jpg\\t1,2'"),
        ("classes=3 absent=0", "a.jpg\t99999999999999999999", "line 2 is"),
        ("classes=3 absent=0", "a.jpg\t3", "has class 3; expected 0 to 2"),
        ("classes=3 absent=0", "a.jpg\t-1", "has class -1; expected 0 to 2"),
        ("classes=3 absent=0", "a.jpg\t1:nan", "has the value nan; expected 0, 1, a weight, or -1"),
        ("classes=3 absent=0", "a.jpg\t1:-2", "has the value -2"),
        ("classes=3", "a.jpg\t1", "is no index of images and labels .'absent'"),
        ("classes=3 absent=7x", "a.jpg\t1", "is no index of images and labels"),
    ],
)
def test_an_index_edited_wrongly_is_a_sentence(head, line, message, tmp_path):
    path = sources.write_text(tmp_path / "i.txt", f"# multilabel index: and so on; {head}\n{line}\n")
    with pytest.raises(UsageError, match=message):
        read_index(path)
