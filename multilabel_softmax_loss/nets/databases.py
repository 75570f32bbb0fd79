"""The LMDBs and LevelDBs that Data layers read, looked through before Caffe does, which checks little of them."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from itertools import islice
from typing import Any, Iterator, List, Optional, Sequence, Set, Tuple

from ..errors import UsageError, warn
from ..files import search_hint
from .image_files import ends_too_early

SMALL = 2**28  # bytes of an LMDB of which every Datum is looked at before Caffe reads it
DISTINCT = 1000  # of a larger one so many of each length that was not seen before

WALK = """import lmdb, sys
with lmdb.open(sys.argv[1], readonly=True, lock=False) as database, database.begin(buffers=True) as reader:
    for key, value in reader.cursor():
        bytes(value)
"""


class Database:
    """An open database of Datums. `entries()` goes through its keys and values, in the order that Caffe reads."""

    def __init__(self, where: str, length: Optional[int], bytes_held: int, walk: Any):
        self.where, self.length, self.bytes_held, self.entries = where, length, bytes_held, walk
        self.is_large = length is not None and bytes_held > SMALL  # a LevelDB has been read as a whole, to be counted


@contextmanager
def open_database(layer: Any) -> Iterator[Database]:
    """The database of a Data layer.

    Raises
    ------
    UsageError : it is missing, torn, or none.
    """
    source = layer.data_param.source
    where = named(layer)
    if not os.path.isdir(source):
        hint = search_hint(source)
        raise UsageError(f"{where} is no folder; expected that of an LMDB or a LevelDB.{hint}")
    opened = open_lmdb if is_lmdb(layer) else open_leveldb
    with opened(source, where) as database:
        yield database


def named(layer: Any) -> str:
    return f"{layer.data_param.source} (source of layer {layer.name!r})"


@contextmanager
def open_lmdb(source: str, where: str) -> Iterator[Database]:
    path = os.path.join(source, "data.mdb")
    if not os.path.exists(path):
        other = " It looks like a LevelDB: write backend: LEVELDB." if looks_like_leveldb(source) else ""
        raise UsageError(f"{where} is no LMDB: no data.mdb is in it.{other}")
    with readable_lmdb(source, where) as environment:
        check_whole(environment, source, path, where)
        with environment.begin(buffers=True) as reader:
            length = environment.stat()["entries"]
            yield Database(where, length, os.path.getsize(path), lambda: iter(reader.cursor()))


@contextmanager
def readable_lmdb(source: str, where: str) -> Iterator[Any]:
    """The environment of an LMDB; a UsageError is raised where it cannot be read."""
    import lmdb

    try:
        with lmdb.open(source, readonly=True, lock=False) as environment:
            yield environment
    except lmdb.Error as error:
        raise UsageError(f"{where} is no readable LMDB: {error}.") from error


def check_whole(environment: Any, source: str, path: str, where: str) -> None:
    """Raise a UsageError for an LMDB that was cut short: whoever touches what is missing is killed by SIGBUS.

    The last pages that its header counts may never have been written, so a process of its own looks who is right.
    """
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    found = os.path.getsize(path)
    if found < expected and subprocess.run([sys.executable, "-c", WALK, source], stderr=subprocess.DEVNULL).returncode:
        raise UsageError(
            f"{where} was cut short: {path} has {found:,} bytes, and its header speaks of {expected:,}. Copy it again, "
            "or write it anew."
        )


@contextmanager
def open_leveldb(source: str, where: str) -> Iterator[Database]:
    import plyvel

    if not looks_like_leveldb(source):
        other = os.path.exists(os.path.join(source, "data.mdb"))
        hint = " It looks like an LMDB: write backend: LMDB." if other else ""
        raise UsageError(f"{where} is no LevelDB: no file CURRENT is in it.{hint}")
    try:
        # It writes anew what its log holds, which a Caffe that was built without Snappy could not read if compressed.
        database = plyvel.DB(source, create_if_missing=False, compression=None)
    except (plyvel.Error, OSError) as error:
        if "lock" in str(error):
            raise UsageError(
                f"{where} is open in another process, and a LevelDB can be in one only. Give each process, such as "
                "each rank, a copy of its own, or make it an LMDB."
            ) from error
        raise UsageError(f"{where} is no readable LevelDB: {error}.") from error
    try:
        held = sum(entry.stat().st_size for entry in os.scandir(source) if entry.is_file())
        yield Database(where, None, held, database.iterator)
    except plyvel.Error as error:
        raise UsageError(f"{where} is no readable LevelDB: {error}.") from error
    finally:
        database.close()


def looks_like_leveldb(source: str) -> bool:
    return os.path.exists(os.path.join(source, "CURRENT"))


def is_lmdb(layer: Any) -> bool:
    return layer.data_param.backend == layer.data_param.LMDB


def count_database(layer: Any) -> int:
    """How many samples the database of a Data layer holds; at least one, or a UsageError is raised."""
    with open_database(layer) as database:
        count = database.length
        if count is None:  # a LevelDB does not know
            count = sum(1 for _ in database.entries())
        if count == 0:
            raise UsageError(f"{database.where} is an empty set; expected at least one sample.")
        return count


def database_keys(layer: Any) -> List[bytes]:
    with open_database(layer) as database:
        return [bytes(key) for key, _ in database.entries()]


def check_datums(layer: Any) -> None:
    """Raise a UsageError for an entry that is no Datum, or that holds fewer or more numbers than its shape says.

    Caffe would take what happens to lie in memory behind them. Of a large LMDB, which takes long to read, only entries
    of lengths that were not seen before are looked at, which is said; `watch_datums` looks at all.
    """
    with open_database(layer) as database:
        if database.is_large:
            warn(
                f"{database.where} has {database.bytes_held / 1e9:.1f} GB: of its entries, only those of a length that "
                "no other had before are looked at before training or scoring begins. Each is, with its class label, "
                "when the net reads it."
            )
        for key, datum in some_datums(database):
            check_datum(datum, bytes(key), database.where)


def check_datum(datum: Any, key: bytes, where: str) -> None:
    if datum.encoded and ends_too_early(datum.data):
        raise UsageError(f"{where}: the image of key {key!r} ends too early: Caffe would fill it up. Write it anew.")
    expected = datum.channels * datum.height * datum.width
    found = len(datum.data) or len(datum.float_data)
    if not datum.encoded and (found != expected or expected < 1):
        shape = f"{datum.channels} x {datum.height} x {datum.width}"
        raise UsageError(
            f"{where}: the Datum of key {key!r} holds {found} numbers; expected {shape} = {expected}, as its channels, "
            "height and width say. Write it anew."
        )


def some_datums(database: Database) -> Iterator[Tuple[Any, Any]]:
    """The keys and Datums of a database; of a large one, those of lengths that were not seen before."""
    lengths: Set[int] = set()
    for key, value in database.entries():
        if database.is_large:
            if len(value) in lengths or len(lengths) >= DISTINCT:
                continue
            lengths.add(len(value))
        yield key, parse_datum(bytes(value), bytes(key), database.where)


def parse_datum(value: bytes, key: bytes, where: str) -> Any:
    from caffe.proto import caffe_pb2
    from google.protobuf.message import DecodeError

    try:
        return caffe_pb2.Datum.FromString(value)
    except (DecodeError, RuntimeWarning) as error:
        raise UsageError(f"{where}: the entry of key {key!r} is torn, or no Datum.") from error


def watch_datums(net: Any, layers: Sequence[Any], ranks: int = 1) -> None:
    """Have a caffe.Net raise a UsageError where a Data layer brings an entry of a large LMDB that is not what it says.

    Each entry is looked at as it comes, before anything is computed of it, until all were: it is in memory then.
    `layers` are those of the net's prototxt; `ranks` are so many that share the batches.
    """
    places = [place for place, layer in enumerate(net.layers) if layer.type == "Data"]
    readers = [layer for layer in layers if layer.type == "Data"]
    looks = {
        place: look_at_batches(layer, os.path.abspath(layer.data_param.source), ranks)
        for place, layer in zip(places, readers)
        if is_large_lmdb(layer)
    }
    if looks:
        net.after_forward(lambda place: next(looks[place], None) if place in looks else None)


def is_large_lmdb(layer: Any) -> bool:
    return is_lmdb(layer) and os.path.getsize(os.path.join(layer.data_param.source, "data.mdb")) > SMALL


def look_at_batches(layer: Any, source: str, ranks: int) -> Iterator[None]:
    """Look at the entries of a layer's LMDB, which lies at `source`, those of a batch at each step.

    In between it is closed, as a process may open an LMDB but once, and several layers may read it.
    """
    size = layer.data_param.batch_size * ranks
    start, count = b"", size + layer.data_param.rand_skip  # chance leaves out fewer than so many
    while True:
        with readable_lmdb(source, named(layer)) as environment, environment.begin() as reader:
            cursor = reader.cursor()
            cursor.set_range(start)
            for key, value in islice(cursor, count):
                check_datum(parse_datum(value, key, named(layer)), key, named(layer))
            if not (cursor.key() and cursor.next()):
                return
            start, count = cursor.key(), size
        yield
