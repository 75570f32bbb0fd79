"""The command `convert`: from images and their annotations to what Caffe trains on."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from ..data import conversion, net_files, proof, report
from ..data.conversion import Plan, Progress
from ..data.datum import mean_blob
from ..data.decoding import Recipe
from ..data.finder import OPTIONS
from ..data.formats import FORMATS
from ..data.images import Geometry
from ..data.source import Found, gather, summary
from ..data.split import SPLITS, duplicates, listed, orders, stratified
from ..data.stream import UNKNOWN
from ..data.writers import WRITERS, hdf5_name, write_index
from ..errors import UsageError, end_interrupted, shortlist
from ..files import replacing, write_text
from ..parallel.launcher import cores
from .arguments import at_least_one
from .child import PROGRAM, handling, run_in_child
from .terminal import progress_bar

WITHOUT_CAFFE = True  # but for the proof at the end
DEFAULT_SIZE = (256, 256)
SMALLEST = 8  # side of an image
FEW = 8  # images at once in the proof in Caffe
RESUMABLE = "; the same command with --resume goes on"

EXAMPLE = """example:
  python -m multilabel_softmax_loss convert photos.csv --images photos --out tags --dry-run
  python -m multilabel_softmax_loss convert photos.csv --images photos --out tags
  python -m multilabel_softmax_loss convert photos.csv --images photos --out tags --resume   (after Ctrl-C or kill -9)

SOURCE is recognised by looking: PASCAL VOC (its folder), LabelImg's XML (its folder), COCO instances (JSON), CSV with a
column of tags or a column per class, CelebA, NUS-WIDE (its folder), Open Images, iMaterialist, a list file of
`path i j k` (class indices) or `path 0 1 -1` (values; -1 is unknown), or a folder per class. Several sources are read
one after another.
In DIR: the data of train and val, classes.txt, the mean, preprocessing.json, report.json, and train_val.prototxt with
solver.prototxt, which `train` takes as they are. Exit status 2: something is wrong, such as too many bad images.
"""


def add_arguments(parser: Any) -> None:
    parser.description = "Make LMDBs, HDF5 files or an index of images with several labels, and a net that reads them."
    parser.epilog = EXAMPLE
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="annotations: a file or a folder")
    parser.add_argument("--out", metavar="DIR", required=True, help="a new folder")
    parser.add_argument("--images", metavar="ROOT", help="the folder that images are named from (default: looked for)")
    formats = f"of the sources: {', '.join(FORMATS)} (default: recognised)"
    parser.add_argument("--format", choices=list(FORMATS), metavar="F", help=formats)
    parser.add_argument("--classes", metavar="FILE", help="names of the classes wanted, one per line, in their order")
    parser.add_argument("--to", choices=list(WRITERS), default="lmdb", help="what to write (default: %(default)s)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--size", metavar="W[xH]", help="resize to this width and height (default: 256x256)")
    size.add_argument("--short-side", type=at_least_one, metavar="S", help="resize the shorter side, keep the shape")
    parser.add_argument("--gray", action="store_true", help="one channel in place of three")
    parser.add_argument("--encode", metavar="KIND", help="jpg:QUALITY, png or raw, in LMDBs (default: jpg:95)")
    split = parser.add_mutually_exclusive_group()
    split.add_argument("--split", type=share, metavar="SHARE", help="this share validates (default: 0.1); 0: none")
    told = "names of the images that validate, or `name train|val|test`; a list or a CSV"
    split.add_argument("--split-file", metavar="F", help=told)
    split.add_argument("--val", metavar="SOURCE", action="append", default=[], help="a source for validation")
    parser.add_argument("--seed", type=seed, default=0, help="of the split and the order (default: %(default)s)")
    parser.add_argument("--no-shuffle", action="store_true", help="keep the order of the source")
    parser.add_argument("--absent", choices=("0", "unknown"), help="what a class is that is not told (default: 0)")
    parser.add_argument("--bad-images", choices=("skip", "error"), default="skip", help="(default: %(default)s)")
    parser.add_argument("--max-bad", metavar="N|P%", default="1%", help="end if more are bad (default: 1%%)")
    parser.add_argument("--strict", action="store_true", help="decode each image twice, to find what is corrupted")
    parser.add_argument("--jobs", type=at_least_one, metavar="N", help="processes that decode (default: one per core)")
    parser.add_argument("--resume", action="store_true", help="go on with what was begun in DIR")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text}; expected a number from 0 to 2^32 - 1")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}; expected a share from 0 to below 1")
    return value


def run(arguments: Any) -> int:
    found = gather(
        arguments.sources,
        arguments.val,
        arguments.format,
        arguments.images,
        arguments.classes,
        {None: None, "0": 0.0, "unknown": UNKNOWN}[arguments.absent],
    )
    print(summary(found))
    groups = duplicates(found.labels.paths)
    plan = make_plan(arguments, found, groups)
    print(f"split       {', '.join(f'{name} {len(rows):,}' for name, rows in plan.orders)} images")
    print(f"duplicates  {sum(map(len, groups)):,} images in {len(groups):,} groups of the same content", flush=True)
    if not any(map(os.path.isfile, found.labels.paths)):
        first = found.labels.paths[0]
        raise UsageError(f"none of the images is there, such as {first}; say with --images where they are.")
    if arguments.dry_run:
        missing = [path for path in found.labels.paths if not os.path.isfile(path)]
        print(f"missing     {len(missing):,} images{': ' + shortlist(missing) if missing else ''}")
        print("Nothing is written (--dry-run).")
        return 0
    files = (os.path.join(arguments.out, name) for name in (OPTIONS, conversion.REPORT))
    if arguments.resume and all(map(os.path.exists, files)):
        conversion.compare(arguments.out, identity(arguments, plan))
        print(f"{arguments.out} is complete already.")
        return 0
    with conversion.opened(arguments.out, identity(arguments, plan), arguments.resume), handling(interrupted):
        progress = conversion.convert(plan, arguments.out, progress_bar)
        written = conversion.written_rows(plan, progress)
        if not written.get("train"):
            raise UsageError("no image is left to train on.")
        facts = write_files(plan, progress, written, arguments.out)
        print(proof.check(plan, arguments.out, written), flush=True)
        status = prove_in_caffe(plan, facts, written)
        if status:
            return status
        content = report.report(plan, found, progress, written, groups)
        write_text(os.path.join(arguments.out, conversion.REPORT), json.dumps(content, indent=1) + "\n")
        os.remove(os.path.join(arguments.out, conversion.PROGRESS))
    print(report.told(content))
    print(f"Next, from this folder:\n{net_files.next_steps(facts, PROGRAM)}")
    return 0


def interrupted(*_: Any) -> None:
    end_interrupted("convert", state=RESUMABLE)


# The options


def make_plan(arguments: Any, found: Found, groups: List[List[int]]) -> Plan:
    geometry = geometry_of(arguments)
    encoding, quality = encoding_of(arguments)
    if arguments.to == "hdf5" and geometry.size is None:
        raise UsageError("--to hdf5 needs images of one size; give --size in place of --short-side.")
    if arguments.to == "hdf5" and len(arguments.out.split()) > 1:
        raise UsageError(f"--out {arguments.out!r} has a blank, at which Caffe would split the list of HDF5 files.")
    images = len(found.labels.paths)
    rows = np.arange(images)
    if arguments.split_file:
        given, unused = listed(found.labels.paths, arguments.split_file)
        if unused:
            found.notes.append(f"{len(unused):,} names in {arguments.split_file} are no image's: {shortlist(unused)}.")
            print(f"note        {found.notes[-1]}")
        splits = {name: rows[np.array(given) == name] for name in SPLITS}
    else:
        part = 0.1 if arguments.split is None else arguments.split
        val = found.from_val if arguments.val else stratified(found.labels, part, groups, arguments.seed)
        splits = {"train": rows[~val], "val": rows[val]}
    if not len(splits["train"]):
        raise UsageError("no image is left to train on; change the split.")
    return Plan(
        found.labels,
        orders(splits, arguments.seed, not arguments.no_shuffle),
        arguments.to,
        Recipe(geometry, arguments.gray, encoding, quality, arguments.strict),
        arguments.jobs or len(cores()),
        arguments.bad_images,
        most_bad(arguments.max_bad, images),
    )


def geometry_of(arguments: Any) -> Geometry:
    if arguments.short_side:
        geometry = Geometry(short_side=arguments.short_side)
    elif arguments.size is None:
        geometry = Geometry(DEFAULT_SIZE)
    else:
        width, _, height = arguments.size.lower().partition("x")
        try:
            geometry = Geometry((at_least_one(height or width), at_least_one(width)))
        except argparse.ArgumentTypeError as error:
            expected = "expected such as 256, or 320x240 (width x height)"
            raise UsageError(f"--size is {arguments.size!r}; {expected}.") from error
    side = geometry.short_side or min(geometry.size or (SMALLEST,))
    if side < SMALLEST:
        raise UsageError(
            f"images would be {side} wide or high; expected at least {SMALLEST}, for the net to be written."
        )
    return geometry


def encoding_of(arguments: Any) -> Tuple[str, int]:
    if arguments.to != "lmdb":
        if arguments.encode:
            raise UsageError(f"--encode is for LMDBs; --to {arguments.to} has none.")
        return ("raw" if arguments.to == "hdf5" else "none"), 95
    kind, _, quality = (arguments.encode or "jpg:95").partition(":")
    if kind not in ("jpg", "png", "raw") or (quality and (kind != "jpg" or not quality.isdigit())):
        raise UsageError(f"--encode is {arguments.encode!r}; expected jpg:95 (or another quality), png or raw.")
    if not 1 <= int(quality or 95) <= 100:
        raise UsageError(f"--encode is {arguments.encode!r}; expected a quality from 1 to 100.")
    return kind, int(quality or 95)


def most_bad(text: str, images: int) -> int:
    """How many images may be bad."""
    try:
        value = float(text[:-1]) / 100 * images if text.endswith("%") else int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= max(images, 1) * (1 if text.endswith("%") else math.inf):
        raise UsageError(f"--max-bad is {text!r}; expected such as 1% or 20.")
    return int(value)


def identity(arguments: Any, plan: Plan) -> Dict[str, Any]:
    """What decides the bytes that are written, to be compared where a conversion is resumed."""
    names = ["to", "size", "short_side", "gray", "encode", "split", "split_file", "val", "seed", "no_shuffle", "absent"]
    names += ["strict", "sources", "images", "format", "classes"]
    order = [(name, rows.tolist()) for name, rows in plan.orders]
    return {
        **{name: getattr(arguments, name) for name in names},
        "block": plan.block,
        "fingerprint": plan.labels.fingerprint() + conversion.digest(order),
    }


# What is written beside the data


def write_files(plan: Plan, progress: Progress, written: Dict[str, List[int]], folder: str) -> net_files.NetFacts:
    """The index, classes.txt, the mean, and the prototxts."""
    mean = progress.channel_means()
    facts = net_files.NetFacts(
        folder,
        plan.target,
        classes=len(plan.labels.classes),
        counts={name: len(rows) for name, rows in written.items() if rows},
        mean=mean,
        gray=plan.recipe.gray,
        geometry=plan.recipe.geometry,
        has_unknown=plan.labels.has_unknown,
        hdf5_mean=round(float(np.mean(mean)), 3),
        raw=plan.recipe.encoding == "raw",
    )
    texts = {
        "classes.txt": "".join(f"{name}\n" for name in plan.labels.classes),
        "train_val.prototxt": net_files.train_val(facts),
        "solver.prototxt": net_files.solver(facts),
        "preprocessing.json": json.dumps(net_files.preprocessing(facts)) + "\n",
    }
    for name, rows in written.items():
        write_index(facts.path(f"{name}_index.txt"), plan.labels, rows)
        if plan.target == "hdf5":
            files = [facts.path(hdf5_name(name, k)) for k in range(-(-len(dict(plan.orders)[name]) // plan.block))]
            texts[f"{name}.txt"] = "".join(f"{file}\n" for file in files if os.path.exists(file))
    image = progress.mean_image()
    if image is not None:
        with replacing(facts.path("mean.binaryproto")) as temporary, open(temporary, "wb") as file:
            file.write(mean_blob(image))
    for name, text in texts.items():
        write_text(facts.path(name), text)
    os.makedirs(facts.path(net_files.RUN), exist_ok=True)
    return facts


# The proof in Caffe


def prove_in_caffe(plan: Plan, facts: net_files.NetFacts, written: Dict[str, List[int]]) -> int:
    """One forward of the net that was written, in both phases; the exit status."""
    if importlib.util.find_spec("caffe") is None:
        print("Caffe is not installed for this Python, so the net was not run; the data were read back all the same.")
        return 0
    expected: Dict[str, Optional[np.ndarray]] = {
        phase: np.stack([plan.labels.dense(row) for row in written[split][:FEW]])
        for phase, split in (("TRAIN", "train"), ("TEST", "val"))
        if split in facts.counts
    }
    if plan.target != "lmdb":
        expected["TRAIN"] = None  # its order is drawn
    net = facts.path("train_val.prototxt")
    job = argparse.Namespace(command="convert", net=net, expected=expected, if_interrupted=RESUMABLE)
    return run_in_child(forward, job)


def forward(job: Any) -> int:
    """In the child: run the net `job.net`; its labels have to be those expected, its loss a number."""
    from ..nets.data_layers import limit_batches
    from ..nets.python_layers import running
    from ..nets.reading import read_prototxt
    from ..nets.weights import load_net

    losses = []
    for phase, labels in job.expected.items():
        written = read_prototxt(job.net)
        limit_batches(written.layer, FEW)
        net = load_net(written, job.net, phase)
        with running(job.net):
            net.forward()
        found = net.blobs["labels"].data
        if labels is not None and not np.array_equal(
            found.reshape(len(found), -1)[: len(labels)], labels[: len(found)]
        ):
            raise UsageError(f"{job.net}: in Caffe the labels of the {phase} net are not those that were written.")
        losses.append(f"{phase} {float(net.blobs['loss'].data):.4f}")
        if not np.isfinite(net.blobs["loss"].data):
            raise UsageError(f"{job.net}: the loss of the {phase} net is not finite.")
    print(f"Run in Caffe: {job.net}, a few images of each phase; loss {', '.join(losses)}.", flush=True)
    return 0
