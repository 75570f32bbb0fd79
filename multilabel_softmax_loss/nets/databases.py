"""The LMDBs and LevelDBs that Data layers read, looked through before Caffe does, which checks little of them."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Set, Tuple

from ..errors import UsageError, warn
from ..files import search_hint

SMALL = 2**28  # bytes of a database of which every Datum is looked at
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


@contextmanager
def open_database(layer: Any) -> Iterator[Database]:
    """The database of a Data layer.

    Raises
    ------
    UsageError : it is missing, torn, or none.
    """
    source = layer.data_param.source
    where = f"{source} (source of layer {layer.name!r})"
    if not os.path.isdir(source):
        hint = search_hint(source)
        raise UsageError(f"{where} is no folder; expected that of an LMDB or a LevelDB.{hint}")
    opened = open_lmdb if is_lmdb(layer) else open_leveldb
    with opened(source, where) as database:
        yield database


@contextmanager
def open_lmdb(source: str, where: str) -> Iterator[Database]:
    import lmdb

    path = os.path.join(source, "data.mdb")
    if not os.path.exists(path):
        other = " It looks like a LevelDB: write backend: LEVELDB." if looks_like_leveldb(source) else ""
        raise UsageError(f"{where} is no LMDB: no data.mdb is in it.{other}")
    try:
        with lmdb.open(source, readonly=True, lock=False) as environment:
            check_whole(environment, source, path, where)
            with environment.begin(buffers=True) as reader:
                length = environment.stat()["entries"]
                yield Database(where, length, os.path.getsize(path), lambda: iter(reader.cursor()))
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
        database = plyvel.DB(source, create_if_missing=False)
    except (plyvel.Error, OSError) as error:
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

    Caffe would take what happens to lie in memory behind them. Of a large database, which takes long to read, only
    entries of lengths that were not seen before are looked at, which is said.
    """
    with open_database(layer) as database:
        if database.bytes_held > SMALL:
            warn(
                f"{database.where} has {database.bytes_held / 1e9:.1f} GB: of its entries, only those of a length that "
                "no other had before are looked at before the net reads them. Class labels are, batch by batch."
            )
        for key, datum in some_datums(database):
            if datum.encoded:
                continue
            expected = datum.channels * datum.height * datum.width
            found = len(datum.data) or len(datum.float_data)
            if found != expected or expected < 1:
                shape = f"{datum.channels} x {datum.height} x {datum.width}"
                raise UsageError(
                    f"{database.where}: the Datum of key {bytes(key)!r} holds {found} numbers; expected {shape} = "
                    f"{expected}, as its channels, height and width say. Write it anew."
                )


def some_datums(database: Database) -> Iterator[Tuple[Any, Any]]:
    from caffe.proto import caffe_pb2
    from google.protobuf.message import DecodeError

    lengths: Set[int] = set()
    for key, value in database.entries():
        if database.bytes_held > SMALL:
            if len(value) in lengths or len(lengths) >= DISTINCT:
                continue
            lengths.add(len(value))
        try:
            yield key, caffe_pb2.Datum.FromString(bytes(value))
        except (DecodeError, RuntimeWarning) as error:
            raise UsageError(f"{database.where}: the entry of key {bytes(key)!r} is torn, or no Datum.") from error
