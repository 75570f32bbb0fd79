"""Files that are never torn: written beside their name and then put in its place; and text files read."""

from __future__ import annotations

import difflib
import errno
import json
import math
import os
import re
import signal
import stat
import tempfile
from contextlib import ExitStack, contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from .errors import UsageError

# What asks a command to end: Ctrl-C, SIGTERM, and the end of the terminal, unless nohup is to outlive that.
SIGNALS = [signal.SIGINT, signal.SIGTERM]
if getattr(signal, "SIGHUP", None) and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    SIGNALS.append(signal.SIGHUP)


@contextmanager
def blocked() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM wait."""
    former = mask_signals("SIG_BLOCK", SIGNALS)
    try:
        yield
    finally:
        mask_signals("SIG_SETMASK", former)


def mask_signals(how: str, signals: Iterable[int]) -> Iterable[int]:
    """Block or unblock signals; returns those that were blocked before."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        return signal.pthread_sigmask(getattr(signal, how), signals)
    return ()


PICTURES = (".png", ".pdf", ".svg", ".jpg")

# In the name of each temporary file and folder that this program makes, and eight characters after it.
MARK = ".multilabel_softmax_loss-"
TEMPORARY = re.compile(rf"\.(.+){re.escape(MARK)}[a-z0-9_]{{8}}(\.\w+)?", re.S)


def stands_for(name: str) -> Optional[str]:
    """The name in whose place a temporary file of this name would be put; None for a file of another's."""
    match = TEMPORARY.fullmatch(name)
    return match.group(1) + (match.group(2) or "") if match else None


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """A temporary name beside `path`; what is there when all went well takes the place of `path` at once.

    Ctrl-C and SIGTERM wait meanwhile. A file that was there keeps its permissions, and a symbolic link stays one.

    Raises
    ------
    UsageError : it cannot be written, as where a disk is full, or a file may not become so large.
    """
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    stem, suffix = os.path.splitext(name)
    with blocked():
        try:
            handle, temporary = tempfile.mkstemp(prefix=f".{stem}{MARK}", suffix=suffix, dir=folder)
        except OSError as error:
            raise cannot_be_written(path, error) from error
        os.close(handle)
        try:
            yield temporary
            os.chmod(temporary, permissions(target))  # mkstemp makes files for their owner only
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError as error:
            if error.errno and error.filename in (None, temporary):  # no other file is at fault
                raise cannot_be_written(path, error) from error
            raise
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)


def set_aside(path: str) -> str:
    """Give a file a name that no other has; the new path."""
    number = 1
    while os.path.lexists(f"{path}.kept-{number}"):
        number += 1
    os.rename(path, f"{path}.kept-{number}")
    return f"{path}.kept-{number}"


def permissions(path: str) -> int:
    """Those of a file; where there is none, those that a new one gets."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask


def same_file(one: Optional[str], other: Optional[str]) -> bool:
    """Whether two names mean one file, through links and however they are written; also of files yet to be made."""
    if one is None or other is None:
        return False
    return os.path.realpath(one) == os.path.realpath(other) or (
        os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
    )


def check_apart(files: Mapping[str, Optional[str]], *written: str) -> None:
    """Raise a UsageError where one of `files`, named as a user knows them, would be written over another of them."""
    for name in written:
        for other in files:
            if other != name and same_file(files[name], files[other]):
                raise UsageError(f"{files[name]} is the file of both {name} and {other}; expected two.")


def check_output(path: Optional[str], kinds: Sequence[str]) -> None:
    """Say before the work, not after it, that a file cannot be written, or is not of the `kinds` (its suffixes)."""
    if path is None:
        return
    folder = os.path.dirname(os.path.realpath(path))
    if (os.path.exists(path) and not os.path.isfile(path)) or not os.path.isdir(folder):
        raise UsageError(f"{path} cannot be written; expected the name of a file, in a folder that exists.")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path} cannot be written: no permission to write in {folder}.")
    if os.path.splitext(path)[1] not in kinds:
        raise UsageError(f"{path}: unknown kind of file; expected {' or '.join(kinds)}.")


def write_text(path: str, text: str) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def reserve(folder: str, lengths: Sequence[int], start: int = 0) -> None:
    """Raise an OSError where files of these lengths have no room in a folder, each from its byte `start` on.

    They are laid out for a moment, which finds full disks, shares of users, and limits to the length of a file. Caffe,
    HDF5 and LMDB would end the process, or hide the reason, amid the work.
    """
    with ExitStack() as stack:
        for length in lengths if hasattr(os, "posix_fallocate") else ():
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            os.posix_fallocate(file.fileno(), start, length)


def file_in_memory() -> Any:
    """A file for processes to share, which ends with them; not in /dev/shm, which a container may have 64 MB of."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("shared"), "r+b")
    return tempfile.TemporaryFile()


def open_file(path: str, mode: str = "r", **options: Any) -> Any:
    """Open a file to read it, as `open` does; an OSError for a pipe or a device, which may have no end."""
    kind = os.stat(path).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device; expected a file", path)
    return open(path, mode, **options)


def cannot_be_written(path: str, error: OSError) -> UsageError:
    """What to tell of a file that cannot be written, whatever words HDF5 may have for the reason."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    hints = {errno.EFBIG: " (the limit of ulimit -f)", errno.EDQUOT: " (your share of the disk)"}
    return UsageError(f"{path} cannot be written: {reason}{hints.get(error.errno or 0, '')}.")


def cannot_be_read(path: str, named_by: Optional[str], error: Exception) -> UsageError:
    """What to tell of a file that cannot be opened: who named it, where it was looked for, and what is there."""
    reason = getattr(error, "strerror", None) or error  # a ValueError, for a NUL byte in the name, has none
    shown = path if path.isprintable() and path else repr(path)
    text = f"{shown}{f' ({named_by})' if named_by else ''} cannot be read: {reason}."
    missing = path and isinstance(error, (FileNotFoundError, NotADirectoryError))
    return UsageError(f"{text}{search_hint(path)}" if missing else text)


def search_hint(path: str) -> str:
    """What to add where a file is not found: the nearest name that is there, and the folder that paths count from."""
    text = ""
    folder, name = os.path.split(os.path.abspath(path))
    if os.path.isdir(folder):
        others = [other for other in os.listdir(folder) if other != name]  # it may be there, and be no file
        nearest = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
        text += f" Did you mean {os.path.join(os.path.dirname(path), nearest[0])!r}?" if nearest else ""
    else:
        text += f" There is no folder {folder}."
    if not os.path.isabs(path):
        text += f" Paths count from the folder where you start, {os.getcwd()}."
    return text


def read_lines(path: str, what: str) -> List[str]:
    """The lines of a text file, empty ones and a byte order mark left out."""
    try:
        with open_file(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} ({what}) is no text file.") from error
    except (OSError, ValueError) as error:
        raise cannot_be_read(path, what, error) from error
    lines = [line for line in lines if line]
    if not lines:
        raise UsageError(f"{path} ({what}) is empty.")
    return lines


def read_json(path: str, expected: str) -> Any:
    """What a JSON file holds; errors end with what was `expected` of it.

    Raises
    ------
    UsageError : it cannot be read, is no JSON, says something twice, or holds what no float or no text can be.
    """
    try:
        with open_file(path, encoding="utf-8-sig") as file:
            content = json.load(
                file,
                object_pairs_hook=unique_keys,
                parse_float=finite_float,
                parse_constant=finite_float,
                parse_int=lambda text: int(text) if len(text) < 300 else finite_float(text),
            )
        json.dumps(content, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply; {expected}.") from error
    except UnicodeEncodeError as error:
        raise UsageError(f"{path} holds half a character ({error.object[error.start]!a}); {expected}.") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is no JSON ({error}); {expected}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text file; {expected}.") from error
    except OSError as error:
        raise cannot_be_read(path, None, error) from error
    except ValueError as error:
        raise UsageError(f"{path}: {error}; {expected}.") from error
    return content


def unique_keys(pairs: Sequence[Tuple[str, Any]]) -> Dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!a} is there twice")
    return content


def finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text if len(text) < 20 else text[:17] + '...'} is no finite number")
    return value


def is_number(value: Any) -> bool:
    """Whether JSON has a number there; true and false are none."""
    return type(value) in (int, float)
