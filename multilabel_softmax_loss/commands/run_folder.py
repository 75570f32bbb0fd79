"""The folder of a run: kept to one run, and to what this program made; nothing of another's is touched."""

from __future__ import annotations

import filecmp
import os
import shutil
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

from ..errors import UsageError
from ..files import replacing, set_aside, stands_for
from .curves import is_ours
from .history import Damaged, History, read_history
from .snapshots import Snapshots, check_room, fingerprint, is_record, read_record, write_record

REMEDY = "Nothing of another's is overwritten: choose another --out, or move it."


class RunFolder:
    """What a run leaves in its folder: history.csv, curves.png, the best weights, the snapshots, preprocessing.json.

    Of each of these it can be told whether this program made it: snapshots have a .json, best.caffemodel has the
    checksum that best.json or a snapshot names, curves.png says so in itself.
    """

    def __init__(self, path: str, prefix: str):
        self.path = path
        self.prefix = prefix
        self.snapshots = Snapshots(path, prefix)
        self.history_path = os.path.join(path, "history.csv")
        self.curves_path = os.path.join(path, "curves.png")
        self.best_path = os.path.join(path, "best.json")
        self.best_weights = os.path.join(path, "best.caffemodel")
        self.handle: Optional[int] = None

    def history(self, columns: Sequence[str], iteration: int, every: int, say: Callable[[str], None]) -> History:
        return History(self.history_path, columns, iteration, every, say)

    def lock(self, patience: float = 60.0) -> None:
        """Make this folder, and keep it to this process; a run that was killed a moment ago may still be ending.

        Raises
        ------
        UsageError : another run goes on here.
        """
        import fcntl

        if self.handle is not None:
            return
        try:
            os.makedirs(self.path, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be made: {error.strerror}.") from error
        handle = os.open(self.path, os.O_RDONLY)
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    os.close(handle)
                    raise UsageError(f"{self.path} is used by another run; choose another --out.") from error
                time.sleep(0.05)
            except OSError as error:
                os.close(handle)
                raise UsageError(f"{self.path} cannot be locked: {error.strerror}; choose another --out.") from error
        self.handle = handle

    def unlock(self) -> None:
        """Let others in."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None

    def check_there(self) -> None:
        """Raise a UsageError if the folder that this run began in is no longer of that name."""
        try:
            there = self.handle is None or os.path.samestat(os.stat(self.path), os.fstat(self.handle))
        except FileNotFoundError:
            there = False
        if not there:
            raise UsageError(
                f"{self.path} was moved or removed while the run went on. Put it back, and go on with --resume from "
                "its last snapshot."
            )

    # Whose it is

    def check_unused(self, prepared: str) -> None:
        """Raise a UsageError if a new run cannot begin here: another has, or files of another's would be overwritten.

        A run that made no iteration is none. `prepared` is a folder of further files that the run will begin with.
        """
        if not os.path.isdir(self.path):
            return
        if any(iteration > 0 for iteration, _ in self.snapshots.manifests()) or self.has_history():
            raise UsageError(f"{self.path} holds a run already; go on with --resume, or choose another --out.")
        foreign = self.snapshots.foreign() or self.foreign_best(None) or self.foreign_curves()
        for name in sorted(os.listdir(prepared)):
            path = os.path.join(self.path, name)
            if os.path.lexists(path) and not filecmp.cmp(path, os.path.join(prepared, name), shallow=False):
                raise UsageError(f"{path} is there already, and says something else than this run's would. {REMEDY}")
        if foreign:
            raise UsageError(f"{foreign} is there already, and is not of a run of this program. {REMEDY}")

    def has_history(self) -> bool:
        try:
            return bool(read_history(self.history_path).rows)
        except FileNotFoundError:
            return False
        except (OSError, Damaged) as error:
            raise UsageError(f"{self.history_path} is there already, and is no history of a run. {REMEDY}") from error

    def check_ours(self, manifest: Dict[str, Any], say: Callable[[str], None]) -> None:
        """Raise a UsageError where resuming from a snapshot would overwrite what is not of this run.

        Records that are damaged, and weights of which they then cannot tell whose they are, get another name instead.
        """
        foreign = self.snapshots.foreign(after=manifest["iteration"]) or self.foreign_curves()
        best = self.foreign_best(manifest)
        unread = [path for n, path in self.snapshots.manifests() if n > manifest["iteration"]] + [self.best_path]
        unread = [path for path in unread if os.path.lexists(path) and not is_record(path)]
        if self.best_path in unread and best:
            unread.append(best)
            best = None
        if foreign or best:
            raise UsageError(f"{foreign or best} is not of this run, or has changed since. {REMEDY}")
        for path in unread:
            say(f"{path} is damaged, or not of this run; it is kept as {set_aside(path)}.")

    def foreign_best(self, manifest: Optional[Dict[str, Any]]) -> Optional[str]:
        """The best weights, or best.json, where no record of this run, or of a snapshot's manifest, names them."""
        best = self.best()
        if manifest is None and best is None and os.path.lexists(self.best_path):
            return self.best_path
        if not os.path.lexists(self.best_weights):
            return None
        records = [record for record in (best, manifest and manifest["best"]) if record]
        known: List[Any] = [record.get(name) for record in records for name in ("weights", "before")]
        ours = os.path.isfile(self.best_weights) and fingerprint(self.best_weights) in known
        return None if ours else self.best_weights

    def foreign_curves(self) -> Optional[str]:
        return self.curves_path if os.path.lexists(self.curves_path) and not is_ours(self.curves_path) else None

    def take(self, prepared: str) -> None:
        """Begin with the files of a folder."""
        for name in sorted(os.listdir(prepared)):
            with replacing(os.path.join(self.path, name)) as temporary:
                shutil.copyfile(os.path.join(prepared, name), temporary)

    def clean(self) -> None:
        """Remove what a killed process of this program left of this run under temporary names."""
        own = {os.path.basename(path) for path in (self.history_path, self.curves_path, self.best_path)}
        own |= {os.path.basename(self.best_weights), "preprocessing.json", "mean.binaryproto", self.prefix}
        for name in os.listdir(self.path):
            meant = stands_for(name)
            if meant in own or (meant and self.snapshots.is_manifest(meant)):
                path = os.path.join(self.path, name)
                shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.remove(path)

    # The best weights

    def best(self) -> Optional[Dict[str, Any]]:
        """What best.json says; None where it is absent or damaged, so that the next test decides anew."""
        return read_record(self.best_path) if is_record(self.best_path) else None

    def best_of(self, manifest: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        """The record of the best weights that are there, or were when a snapshot was taken."""
        best = self.best()
        there = os.path.isfile(self.best_weights) and best and fingerprint(self.best_weights) == best["weights"]
        return best if there else manifest["best"]

    def save_best(self, net: Any, record: Dict[str, Any]) -> Dict[str, Any]:
        """Keep the weights of a net as the best; what best.json says then, which is written first.

        It names the weights that were there before too, so that these are known as ours if this process ends between.
        """
        self.check_there()
        check_room(self.path, net, (1,))
        before = fingerprint(self.best_weights) if os.path.exists(self.best_weights) else None
        with replacing(self.best_weights) as temporary:
            net.save(temporary)
            files = {"weights": fingerprint(temporary), "before": before}
            return write_record(self.best_path, {**record, **files})
