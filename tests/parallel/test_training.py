"""Ranks train as one process with the batch of all; what they read, how they go on, and how a run of ranks fails."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from textwrap import dedent

import caffe
import h5py
import mpi4py  # noqa: F401, without which there are no ranks
import numpy as np
import pytest
from support.ranks import MPIEXEC, finish, run_trainings, start_ranks, two_machines
from support.tiny_nets import (
    CLASSES,
    OURS,
    hdf5_layer,
    inner_product,
    listing,
    make_labels,
    read_net,
    rows_of,
    run_command,
    same_weights,
    wait_for,
    weights_of,
    write_hdf5,
    write_lmdb,
)

from multilabel_softmax_loss.commands.alike import SilentFolder
from multilabel_softmax_loss.commands.predict import BATCH
from multilabel_softmax_loss.commands.run_folder import RunFolder
from multilabel_softmax_loss.commands.sharing import Shuffles, check_shared, share_divisors, share_lists
from multilabel_softmax_loss.commands.solver import scalar_outputs
from multilabel_softmax_loss.commands.train import train
from multilabel_softmax_loss.nets.reading import read_prototxt
from multilabel_softmax_loss.parallel.ranks import ranks
from multilabel_softmax_loss.parallel.window import window

KILLS = int(os.environ.get("RANK_KILLS", "2"))  # `make kill-test` makes it 10
SAMPLES = 200
WHOLE = 32  # samples per iteration, of all ranks
ITERATIONS = 50
FAST = {"OMP_NUM_THREADS": "1", "MULTILABEL_SOFTMAX_LOSS_KERNELS": "numpy"}
SIGMOID = OURS.replace("MultilabelSoftmaxLossLayer", "MultilabelSigmoidLossLayer")
WEIGHTED = OURS.replace('bottom: "label"', 'bottom: "label" bottom: "weight"')
NATIVE = 'layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "scores" bottom: "label" top: "loss" }\n'
IGNORING = NATIVE.replace("}", "loss_param { ignore_label: 0 normalization: VALID } }")
SUMMED = NATIVE.replace("}", "loss_param { normalization: NONE } }")
SGD = 'type: "SGD" momentum: 0.9 base_lr: 0.05'
ADAM = 'type: "Adam" momentum: 0.9 momentum2: 0.999 base_lr: 0.002'


@pytest.fixture(scope="module", autouse=True)
def fast():
    """Neither compilers nor curves, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FAST.items():
            patch.setenv(name, value)
        patch.setattr("multilabel_softmax_loss.commands.curves.draw_curves", lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A set whose labels are spread unevenly over the ranks: of each even sample, and of whole stretches, none."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.RandomState(0)
    x, y = make_labels(rng, SAMPLES)
    y[60:100] = 0
    y[np.arange(0, SAMPLES, 2)[rng.rand(SAMPLES // 2) < 0.7]] = 0
    weight = np.where(np.arange(SAMPLES) % 2, 30.0, 0.1)[:, None] * rng.rand(SAMPLES, 1)
    write_hdf5(folder / "train", data=x, label=y, weight=weight.astype(np.float32))
    write_hdf5(folder / "test", data=x[:70], label=y[100:170])
    write_lmdb(folder / "data", x)
    write_lmdb(folder / "label", y)
    return folder


def write_run(
    folder, data, batch, loss=OURS % "", solver=SGD, source="hdf5", shuffle=False, test=False, iterations=ITERATIONS
):
    """A net and a solver in `folder`; the name of the solver."""
    folder.mkdir(exist_ok=True)
    if source == "lmdb":
        net = "".join(
            f'layer {{ name: "{top}" type: "Data" top: "{top}"\n'
            f'  data_param {{ source: "{data / top}" batch_size: {batch} backend: LMDB }} }}\n'
            for top in ("data", "label")
        )
    else:
        tops = ("data", "label", "weight") if 'bottom: "weight"' in loss else ("data", "label")
        net = hdf5_layer(data / "train.txt", "TRAIN", batch, shuffle, tops)
    if test:
        net += hdf5_layer(data / "test.txt", "TEST", 10)
    net += inner_product("hidden", "data", 8) + 'layer { name: "t" type: "TanH" bottom: "hidden" top: "hidden" }\n'
    net += inner_product("scores", "hidden", CLASSES) + loss
    (folder / "net.prototxt").write_text(net)
    rest = f'lr_policy: "fixed" max_iter: {iterations} snapshot: 10 random_seed: 3'
    tests = "test_iter: 7 test_interval: 20" if test else ""
    path = folder / "solver.prototxt"
    path.write_text(f'net: "{folder}/net.prototxt" {solver} {rest} {tests}\n')
    return str(path)


def start_training(size, solver, out, *words, folder=None, **environment):
    command = ["-m", "multilabel_softmax_loss", "train", solver, "--out", out, *words]
    return start_ranks(size, *command, folder=folder or Path(solver).parent, **{**FAST, **environment})


def train_ranks(size, solver, out, *words, **keywords):
    return finish(start_training(size, solver, out, *words, **keywords))


def last(folder, iterations=ITERATIONS):
    return Path(folder) / f"solver_iter_{iterations}.caffemodel"


def distance(one, other):
    """The relative difference of all weights."""
    one, other = (np.concatenate([w.ravel() for w in weights_of(last(f)).values()]) for f in (one, other))
    return np.linalg.norm(one - other) / np.linalg.norm(one)


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """One process with the whole batch, and its test."""
    folder = tmp_path_factory.mktemp("one")
    train(write_run(folder, data, WHOLE, test=True), out=str(folder / "run"))
    return folder


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """The same on two ranks, each with a folder, temporary files and, with the rights of root, a network of its own."""
    folder = tmp_path_factory.mktemp("two")
    for rank in ("0", "1"):
        write_run(folder / rank, data, WHOLE // 2, test=True)
        solver = folder / rank / "solver.prototxt"
        solver.write_text(solver.read_text().replace(f"{folder / rank}/", ""))
        (folder / rank / "tmp").mkdir()
    enter = f'cd "{folder}/$PMI_RANK" && TMPDIR="$PWD/tmp" exec "$@"'
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    train = [sys.executable, "-m", "multilabel_softmax_loss", "train", "solver.prototxt", "--out", "run"]
    with two_machines() as (words, environment):
        command = [MPIEXEC, "-n", "2", *words, "sh", "-c", enter, "sh", *train]
        process = subprocess.Popen(command, env={**os.environ, **FAST, **environment}, **streams)
        status, output, errors = finish(process)
    assert (status, errors) == (0, "")
    assert output.startswith(f"2 ranks x 16 = {WHOLE} samples per iteration; base_lr is as the solver says.\n")
    assert output.count("Finished") == 1
    assert not (folder / "1" / "run").exists()
    return folder / "0"


def test_two_ranks_train_as_one_process_with_the_whole_batch(one, two):
    assert distance(one / "run", two / "run") < 1e-6


def test_two_ranks_record_what_one_process_does(one, two):
    mine, theirs = (rows_of(folder / "run", "seconds") for folder in (one, two))
    assert len(mine) == len(theirs) == ITERATIONS + 1
    assert [row["test_mAP"] for row in mine] == [row["test_mAP"] for row in theirs]
    for row, other in zip(mine[:-1], theirs):
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=2e-6)
    assert set(listing(two / "run")) == {*listing(one / "run"), "curves.png"}


SECOND = (SIGMOID % '{"normalization": "VALID"}').replace('"loss"', '"second"').replace("weight: 1", "weight: 0.5")
CASES = {
    "sample weights, iter_size": (2, dict(loss=WEIGHTED % "", solver=f"{ADAM} iter_size: 2")),
    "NONE": (2, dict(loss=OURS % '{"normalization": "NONE"}', solver=SGD.replace("05", "002"))),
    "two losses": (2, dict(loss=OURS % "" + SECOND)),
    "no losses of ours": (2, dict(loss=NATIVE)),
    "a sum of Caffe's": (2, dict(loss=SUMMED, solver=SGD.replace("05", "002"))),
    "a loss of Caffe's that ignores": (2, dict(loss=IGNORING + SECOND)),
    "four ranks, LMDB, sigmoid": (4, dict(loss=SIGMOID % '{"normalization": "VALID"}', solver=ADAM, source="lmdb")),
}


@pytest.fixture(scope="module")
def all_cases(data, tmp_path_factory):
    """The folders of the cases: "ranks" is what they come to on ranks, started once for all cases of as many."""
    folder = tmp_path_factory.mktemp("cases")
    for size in (2, 4):
        trainings = []
        for name, (count, options) in CASES.items():
            if count == size:
                parts = size * (2 if "iter_size" in options.get("solver", "") else 1)
                solver = write_run(folder / name, data, WHOLE // parts, **options)
                keywords = {"solver": solver, "out": folder / name / "ranks"}
                trainings.append({"folder": folder, "train": keywords})
        assert run_trainings(size, trainings, folder, **FAST) == [""] * len(trainings)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_ranks_train_as_one_process(name, all_cases, data, tmp_path):
    _, options = CASES[name]
    whole = {**options, "solver": options.get("solver", SGD).replace("iter_size: 2", "")}
    train(write_run(tmp_path, data, WHOLE, **whole), out=str(tmp_path / "run"))
    assert distance(tmp_path / "run", all_cases / name / "ranks") < 1e-6
    losses = [[float(row["loss"]) for row in rows_of(run)] for run in (tmp_path / "run", all_cases / name / "ranks")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-6)


@pytest.mark.parametrize("loss", [OURS % "", SIGMOID % '{"normalization": "VALID"}', WEIGHTED % "", IGNORING])
def test_an_iteration_of_several_batches_is_one_large_batch(loss, data, tmp_path):
    for name, batch, solver in (("one", WHOLE, SGD), ("parts", WHOLE // 4, f"{SGD} iter_size: 4")):
        train(write_run(tmp_path / name, data, batch, loss, solver), out=str(tmp_path / name / "run"))
    assert distance(tmp_path / "one" / "run", tmp_path / "parts" / "run") < 1e-6
    losses = [[float(row["loss"]) for row in rows_of(tmp_path / name / "run")] for name in ("one", "parts")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-6)


def test_several_losses_stay_a_mean_of_means_and_it_is_said(data, tmp_path, capsys):
    second = (OURS % "").replace('"loss"', '"second"').replace("loss_weight: 1", "loss_weight: 0.5")
    solver = write_run(tmp_path, data, WHOLE // 4, OURS % "" + second, f"{SGD} iter_size: 4")
    train(solver, out=str(tmp_path / "run"))
    assert capsys.readouterr().err.count("each batch is divided by what counts in it, as Caffe does") == 1


READ = 'layer { name: "reader" type: "Power" bottom: "loss" top: "read" %s }'
FAILING = """layer { name: "device" type: "Python" top: "device" include { phase: TRAIN }
  python_param { module: "support.failing" layer: "FailsOnRank1" } }
"""
UNWEIGHTED = (OURS % "").replace("loss_weight: 1", "loss_weight: 0")
ACCURACY = 'layer { name: "right" type: "Accuracy" bottom: "scores" bottom: "class" top: "right" %s }'
IGNORED = "accuracy_param { ignore_label: 0 }"
ONE_CLASS = 'layer { name: "class" type: "DummyData" top: "class" dummy_data_param { shape { dim: 32 } } }'
SUM = 'layer { name: "sum" type: "Reduction" bottom: "scores" top: "sum" loss_weight: 0.01 }'


@pytest.mark.parametrize(
    "loss, told",
    [
        pytest.param(
            IGNORING.replace('top: "loss"', 'top: "loss" loss_weight: 1') + READ % "",
            ["read, loss"],
            id="Caffe's, read",
        ),
        pytest.param(OURS % "" + READ % "", ["read, loss"], id="ours, read"),
        pytest.param(UNWEIGHTED + READ % "loss_weight: 1", ["read"], id="ours by another layer"),
        pytest.param(IGNORING + SUM, ["sum"], id="not known"),
        pytest.param(OURS % "" + UNWEIGHTED.replace('"loss"', '"more"'), ["more"], id="ours, only recorded"),
        pytest.param(IGNORING + ONE_CLASS + ACCURACY % IGNORED, ["right"], id="a figure that ignores"),
        pytest.param(IGNORING + ONE_CLASS + ACCURACY % "", [], id="a figure"),
        pytest.param(IGNORING, [], id="Caffe's"),
        pytest.param(OURS % "", [], id="ours"),
    ],
)
def test_losses_that_ranks_only_average_are_named(loss, told, data, tmp_path, capsys, monkeypatch):
    write_run(tmp_path, data, WHOLE, loss)
    path = str(tmp_path / "net.prototxt")
    monkeypatch.setattr(ranks, "size", 2)
    net = caffe.Net(path, caffe.TRAIN)
    share_divisors(net, read_prototxt(path).layer, scalar_outputs(net))
    assert re.findall("ranks average (.*), which", capsys.readouterr().err) == told


def test_a_mean_of_means_is_something_else(one, data, tmp_path, monkeypatch):
    """So that these tests can tell it."""
    monkeypatch.setattr(window, "share", lambda divisor, is_sum: divisor)
    train(write_run(tmp_path, data, WHOLE // 2, solver=f"{SGD} iter_size: 2"), out=str(tmp_path / "run"))
    assert distance(one / "run", tmp_path / "run") > 0.05


# What ranks read


def rank_reads(rank, size, layer, passes, monkeypatch, folder):
    """The samples that a rank of several reads, batch by batch."""
    monkeypatch.setattr(ranks, "rank", rank)
    monkeypatch.setattr(ranks, "size", size)
    caffe.set_solver_count(size)
    caffe.set_solver_rank(rank)
    caffe.set_multiprocess(size > 1)
    try:
        net = share_lists(read_net(layer), str(folder / f"of{size}_rank{rank}"))
        path = folder / f"net{rank}.prototxt"
        path.write_text(str(net))
        caffe.set_random_seed(1)
        ctypes.CDLL(None).srand(1)
        loaded = caffe.Net(str(path), caffe.TRAIN)
        Shuffles(loaded, net.layer, seed=7)
        return [loaded.forward()["id"].ravel().astype(int).tolist() for _ in range(passes)]
    finally:
        caffe.set_solver_count(1)
        caffe.set_solver_rank(0)
        caffe.set_multiprocess(False)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("size, batch, files", [(2, 6, 1), (3, 4, 1), (2, 6, 2)])
def test_each_sample_of_an_epoch_is_read_once_by_one_rank(size, batch, files, shuffle, tmp_path, monkeypatch):
    samples = 40
    for file in range(files):
        ids = np.arange(file * samples, (file + 1) * samples, dtype=np.float32)[:, None]
        write_hdf5(tmp_path / str(file), id=ids)
    (tmp_path / "all.txt").write_text("".join(f"{tmp_path}/{file}.h5\n" for file in range(files)))
    whole = size * batch
    passes = 3 * files * samples // whole

    def layer(batch):
        return hdf5_layer(tmp_path / "all.txt", "TRAIN", batch, shuffle, ["id"])

    reads = [rank_reads(rank, size, layer(batch), passes, monkeypatch, tmp_path) for rank in range(size)]
    alone = rank_reads(0, 1, layer(whole), passes, monkeypatch, tmp_path)
    together = [[reads[k % size][p][k // size] for k in range(whole)] for p in range(passes)]
    assert together == alone
    order = [sample for batch in together for sample in batch]
    for epoch in range(len(order) // (files * samples)):
        seen = order[epoch * files * samples : (epoch + 1) * files * samples]
        assert sorted(seen) == list(range(files * samples))
        assert (seen == sorted(seen)) is not shuffle


def test_lists_of_images_are_dealt_out_line_by_line(tmp_path, monkeypatch):
    import cv2

    for k in range(7):
        cv2.imwrite(str(tmp_path / f"{k}.png"), np.full((2, 2, 3), k, np.uint8))
    (tmp_path / "list.txt").write_text("".join(f"{tmp_path}/{k}.png {k}\n" for k in range(7)))

    def layer(batch):
        source = f'source: "{tmp_path}/list.txt" batch_size: {batch}'
        return f'layer {{ name: "i" type: "ImageData" top: "image" top: "id" image_data_param {{ {source} }} }}'

    reads = [rank_reads(rank, 2, layer(2), 7, monkeypatch, tmp_path) for rank in range(2)]
    alone = rank_reads(0, 1, layer(4), 7, monkeypatch, tmp_path)
    assert [[reads[k % 2][p][k // 2] for k in range(4)] for p in range(7)] == alone


# Going on


def test_resuming_on_as_many_ranks_after_a_kill_is_bit_identical(data, tmp_path):
    random = Random(os.environ.get("RANK_KILLS", "0"))
    iterations = 60 * KILLS + 60
    solver = write_run(tmp_path, data, WHOLE // 2, shuffle=True, iterations=iterations)
    assert run_trainings(2, [{"folder": tmp_path, "train": {"solver": solver, "out": "whole"}}], tmp_path, **FAST) == [
        ""
    ]
    out = tmp_path / "run"
    for kill in range(KILLS):
        process = start_training(2, solver, out, *(["--resume"] if kill else []))
        wait_for_snapshot(out, process)
        time.sleep(random.random() * 0.05)
        victims = processes_of_ranks(process.pid)
        assert victims, f"it came to its end before kill {kill + 1}"
        os.kill(random.choice(victims), signal.SIGKILL)
        status, _, errors = finish(process)
        assert status in (2, 9, 137)  # those of a hub, which the launcher started itself
        assert errors.count("error:") == (status == 2)
    status, _, errors = train_ranks(2, solver, out, "--resume")
    assert (status, errors) == (0, "")
    assert same_weights(last(out, iterations), last(tmp_path / "whole", iterations))
    assert rows_of(out, "seconds") == rows_of(tmp_path / "whole", "seconds")


def test_a_run_that_is_asked_to_end_says_how_to_go_on(data, tmp_path):
    solver = write_run(tmp_path, data, WHOLE // 2, iterations=1_000_000)
    process = start_training(2, solver, tmp_path / "run")
    wait_for(lambda: last(tmp_path / "run", 20).exists(), 60)  # so that rank 0 has curves to draw
    process.send_signal(signal.SIGTERM)
    status, output, errors = finish(process)
    assert (status, errors) == (130, "")
    told = re.search(r"^Interrupted at iteration (\d+); weights in .*\nGo on with: mpiexec -n 2 ", output, re.M)
    assert told
    assert last(tmp_path / "run", told.group(1)).exists()


def wait_for_snapshot(folder, process):
    def count():
        return len(list(Path(folder).glob("*.solverstate")))

    before = count()
    wait_for(lambda: count() > before or process.poll() is not None, 60)


def processes_of_ranks(launcher):
    """The hubs below the launcher's proxy, and the processes that train below them."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(words[1])
    level, found = [launcher], []
    for _ in range(3):
        level = [pid for pid, parent in parents.items() if parent in level]
        found.append(sorted(level))
    return found[1] + found[2]


def test_a_run_goes_on_with_another_number_of_ranks_and_the_same_samples(one, two, data, tmp_path):
    shorter = tmp_path / "run"
    shorter.mkdir()
    for path in (two / "run").iterdir():
        if "_iter_" not in path.name or "_iter_30." in path.name:
            (shorter / path.name).write_bytes(path.read_bytes())
    train(write_run(tmp_path, data, WHOLE, test=True), out=str(shorter), resume=True)
    assert distance(one / "run", shorter) < 1e-6


def test_constants_in_a_net_are_no_samples_of_it(data, tmp_path):
    train(write_run(tmp_path, data, 16, OURS % "" + ONE_CLASS, iterations=1), out=str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "solver_iter_1.json").read_text())["batch_sizes"] == [16]


# Faults


@pytest.mark.parametrize(
    "name, status, words",
    [("label", 2, "error: rank 1: iteration 3: "), ("data", 1, "error: rank 1: iteration 3: ")],
)
def test_a_bad_sample_of_one_rank_ends_all_with_its_words(name, status, words, tmp_path):
    arrays = dict(zip(("data", "label"), make_labels(np.random.RandomState(0), SAMPLES)))
    arrays[name][101] = np.nan  # of rank 1
    write_hdf5(tmp_path / "train", **arrays)
    solver = write_run(tmp_path / "run", tmp_path, 16)
    found, _, errors = train_ranks(2, solver, tmp_path / "out")
    assert found == status
    assert errors.startswith(f"python -m multilabel_softmax_loss train: {words}")
    assert errors.count("error:") == 1


def test_ranks_that_differ_are_refused(two, data, tmp_path):
    """What one rank alone lacks, or has otherwise; and what ranks cannot do at all."""
    for rank in range(2):
        folder = tmp_path / str(rank)
        write_run(folder, data, 16, test=True)
        text = (folder / "solver.prototxt").read_text().replace(f"{folder}/", "")
        (folder / "solver.prototxt").write_text(text)
        other = text.replace("net.prototxt", "gone.prototxt") if rank else text
        (folder / "lacking.prototxt").write_text(other)
        (folder / "differing.prototxt").write_text(text.replace("05", "04") if rank else text)
        write_run(folder / "weighted", data, 16, OURS % '{"class_weight": "weight.txt"}', test=True)
        (folder / "weighted.prototxt").write_text(text.replace("net.prototxt", "weighted/net.prototxt"))
        write_run(folder / "reweighted", data, 16, OURS % '{"class_weight": "other.txt"}', test=True)
        (folder / "reweighted.prototxt").write_text(text.replace("net.prototxt", "reweighted/net.prototxt"))
        write_run(folder / "failing", data, 16, OURS % "" + FAILING, test=True)
        (folder / "failing.prototxt").write_text(text.replace("net.prototxt", "failing/net.prototxt"))
        (folder / "other.txt").write_text(f"{rank + 1}\n" * CLASSES)
    (tmp_path / "0" / "weight.txt").write_text("1\n" * CLASSES)
    write_run(tmp_path / "large", data, 150)
    write_run(tmp_path / "other", data, WHOLE, test=True)

    def case(solver="solver.prototxt", folder=tmp_path / "{rank}", out="run", resume=False, **others):
        return {"folder": folder, "train": {"solver": solver, "out": out, "resume": resume}, **others}

    cases = [
        case("differing.prototxt"),
        case("lacking.prototxt"),
        case("weighted.prototxt"),
        case("reweighted.prototxt"),
        case("failing.prototxt"),
        case(other_version="caffe"),
        case(other_version="multilabel_softmax_loss"),
        case(last={"k": 2}),
        case(folder=tmp_path / "large"),
        case(folder=tmp_path / "other", out=two / "run", resume=True),
    ]
    outcomes = run_trainings(2, cases, tmp_path, **FAST)
    expected = [
        "differing.prototxt: rank 0 has CRC .*, rank 1 CRC .*; expected the same on all ranks",
        "rank 1: gone.prototxt",
        "weighted/net.prototxt .* weight.txt of layer 'loss': rank 0 has CRC .*, rank 1 nothing",
        "reweighted/net.prototxt .* other.txt of layer 'loss': rank 0 has CRC .*, rank 1 CRC",
        "rank 1: failing/net.prototxt: .*no such device",
        "caffe: rank 0 has .*, rank 1 0.0; expected the same",
        "multilabel_softmax_loss: rank 0 has .*, rank 1 0.0; expected the same",
        "option k: rank 0 has None, rank 1 2; expected the same",
        "has 200 samples; expected at least 2 ranks x 150 = 300, the samples of one iteration",
        "the run had 2 ranks x 16 = 32 samples per iteration, and now has 2 ranks x 32 = 64 samples"
        f".*--weights {two}/run/solver_iter_50.caffemodel",
    ]
    assert len(outcomes) == len(expected)
    for outcome, words in zip(outcomes, expected):
        assert re.search(words, outcome), outcome
    assert not (tmp_path / "0" / "run").exists()


def test_what_layers_keep_of_their_samples_is_that_of_rank_0(data, tmp_path):
    """In tests and snapshots, on any rank; a BatchNorm keeps such, too."""
    kept = 'layer { name: "mean" type: "Python" bottom: "data" top: "mean" param { lr_mult: 0 decay_mult: 0 }\n'
    kept += '  python_param { module: "support.failing" layer: "KeepsMean" } }\n'
    solver = write_run(tmp_path, data, 16, OURS % "" + kept, iterations=10, test=True)
    Path(solver).write_text(Path(solver).read_text().replace("test_interval: 20", "test_interval: 5"))
    assert run_trainings(2, [{"folder": tmp_path, "train": {"solver": solver, "out": "run"}}], tmp_path, **FAST) == [""]
    with h5py.File(data / "train.h5", "r") as file:
        samples = file["data"][...]
    expected = [
        samples[4 * WHOLE : 5 * WHOLE : 2].mean(),
        samples[88 : 88 + WHOLE : 2].mean(),
    ]  # of rank 0's last batch
    found = [float(rows_of(tmp_path / "run")[5]["test_mean"]), weights_of(last(tmp_path / "run", 10))["mean", 0][0]]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("source, told", [("HDF5Data", 1), ("Python", 0)])
def test_steps_of_time_that_ranks_would_share_out_are_told(source, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ranks, "size", 2)
    data = write_hdf5(tmp_path / "steps", data=np.zeros((8, 3), np.float32), cont=np.zeros(8, np.float32))
    net = hdf5_layer(data, "TRAIN", 4, tops=("data", "cont")).replace("HDF5Data", source)
    net += 'layer { name: "memory" type: "LSTM" bottom: "data" bottom: "cont" top: "memory" }'
    check_shared(read_net(net).layer, "net.prototxt")
    assert capsys.readouterr().err.count("memory takes the samples of a batch for steps of time") == told


def test_ranks_but_the_first_keep_no_history(tmp_path):
    history = SilentFolder(RunFolder("run", "solver"), str(tmp_path)).history(["iteration"], 0, 1, print)
    history.add({"iteration": 0}, always=True)
    history.flush()
    history.close()
    assert not list(tmp_path.iterdir())


def test_evaluate_on_ranks_says_what_one_process_says(one):
    words = ["evaluate", one / "net.prototxt", last(one / "run")]
    alone = run_command(*words, folder=one, check=0)
    shared = finish(start_ranks(2, "-m", "multilabel_softmax_loss", *words, folder=one, **FAST))
    assert shared == (0, alone.stdout, alone.stderr)


def test_evaluate_on_ranks_refuses_other_weights_of_one(one):
    words = ["-m", "multilabel_softmax_loss", "evaluate", one / "net.prototxt"]
    other = [":", "-n", "1", sys.executable, *words, last(one / "run", 10)]
    status, output, errors = finish(start_ranks(1, *words, last(one / "run"), *other, folder=one, **FAST))
    assert (status, output) == (2, "")
    told = "error: the weights: rank 0 has CRC .*, rank 1 CRC .*; expected the same on all ranks.\n"
    assert re.fullmatch(f"python -m multilabel_softmax_loss evaluate: {told}", errors)


def test_a_torn_batch_that_both_ranks_come_to_is_told_in_a_sentence(one, tmp_path):
    """One of them evaluates it, the other one passes over it."""
    layer = """
        import caffe
        class Reader(caffe.Layer):
            def setup(self, bottom, top): self.batches = 0
            def reshape(self, bottom, top): top[0].reshape(4, 5), top[1].reshape(4, CLASSES)
            def forward(self, bottom, top):
                self.batches += 1
                if self.batches == 4: raise ValueError("torn")
    """
    (tmp_path / "reader.py").write_text(dedent(layer).replace("CLASSES", str(CLASSES)))
    data = 'layer { name: "data" type: "Python" top: "data" top: "label" python_param { %s } }\n'
    net = data % 'module: "reader" layer: "Reader"' + (one / "net.prototxt").read_text().split("\n", 4)[4]
    (tmp_path / "net.prototxt").write_text(net)
    words = ["-m", "multilabel_softmax_loss", "evaluate", "net.prototxt", last(one / "run"), "--iterations", "8"]
    status, output, errors = finish(start_ranks(2, *words, folder=tmp_path, **FAST))
    assert (status, output) == (2, "")
    assert re.fullmatch(r".* error: rank [01]: net.prototxt: ValueError: torn \(.*reader.py, line 8\)\n", errors)


def test_predict_on_ranks_answers_as_one_process(tmp_path):
    import cv2

    shape = "shape { dim: 1 dim: 3 dim: 4 dim: 5 }"
    net = f'layer {{ name: "data" type: "Input" top: "data" input_param {{ {shape} }} }}\n'
    net += inner_product("scores", "data", CLASSES)
    net += 'layer { name: "probs" type: "Softmax" bottom: "scores" top: "probs" }\n'
    (tmp_path / "net.prototxt").write_text(net)
    caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST).save(str(tmp_path / "net.caffemodel"))
    (tmp_path / "preprocessing.json").write_text('{"mean": [10, 20, 30], "scale": 0.01, "channels": "BGR"}')
    names = [f"{k}.png" for k in range(BATCH + 3)]
    rng = np.random.RandomState(0)
    for name in names:
        cv2.imwrite(str(tmp_path / name), rng.randint(0, 256, (4, 5, 3)).astype(np.uint8))
    words = ["predict", "net.prototxt", "net.caffemodel", *names, "--json"]
    alone = run_command(*words, folder=tmp_path, check=0)
    assert alone.stdout.count("\n") == len(names)
    shared = finish(start_ranks(2, "-m", "multilabel_softmax_loss", *words, folder=tmp_path, **FAST))
    assert shared == (0, alone.stdout, alone.stderr)
