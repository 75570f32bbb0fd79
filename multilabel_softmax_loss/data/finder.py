"""Where the files of images are, which annotations name in their own ways."""

from __future__ import annotations

import os
from typing import Dict, Iterable, Iterator, Mapping, Optional, Sequence, Tuple

from ..errors import UsageError
from .stream import SUFFIXES, is_image


class ImageFinder:
    """Finds the file of an image as annotations name it: as given, with a suffix added, without its first folders, or,
    where it has no folder, by its name alone."""

    def __init__(self, roots: Sequence[str], searched: str):
        self.searched = searched
        self.roots = [root for root in dict.fromkeys(map(os.path.normpath, roots)) if os.path.isdir(root)]
        self.suffix = ""
        self.names: Optional[Dict[str, Optional[str]]] = None
        self.shortened: Dict[str, str] = {}  # what was found without its first folders

    def find(self, name: str) -> str:
        """The path; that in the first root where there is none."""
        suffixes = ("",) if is_image(name) else dict.fromkeys((self.suffix, "", *SUFFIXES))
        for spelled, shortened in spellings(name):
            for suffix in suffixes:
                for k, root in enumerate(self.roots):
                    path = os.path.join(root, spelled + suffix)
                    if os.path.isfile(path):
                        path = os.path.normpath(path)
                        self.suffix = suffix
                        if k:
                            self.roots.insert(0, self.roots.pop(k))  # the next one is likely there too
                        if shortened:
                            self.shortened[path] = plain(name)
                        return path
        found = None if "/" in plain(name) else self.by_name(name)
        if found and not is_image(name) and not found.endswith(self.suffix):
            found = None  # such as a mask
        return found or os.path.normpath(os.path.join(self.roots[0] if self.roots else "", name))

    def check(self, names: Mapping[str, str]) -> None:
        """Raise a UsageError where two of {name: path} are one file only because their folders are not there."""
        for name, path in names.items() if self.shortened else ():
            other = self.shortened.get(path, plain(name))
            if other != plain(name):
                raise UsageError(f"{path} would be both {name} and {other}; expected a file for each. See --images.")

    def by_name(self, name: str) -> Optional[str]:
        """The only image of this name, with or without its suffix, anywhere below the folder searched."""
        if self.names is None:
            self.names = {}
            for path in self.below():
                for key in dict.fromkeys((os.path.basename(path), os.path.splitext(os.path.basename(path))[0])):
                    self.names[key] = None if key in self.names else path
        return self.names.get(name)

    def below(self) -> Iterable[str]:
        """All image files below the folder searched, each once."""
        for folder, folders, names in os.walk(self.searched):
            folders.sort()
            yield from (os.path.normpath(os.path.join(folder, name)) for name in sorted(names) if is_image(name))


def plain(name: str) -> str:
    return os.path.normpath(name.replace("\\", "/"))


def spellings(name: str) -> Iterator[Tuple[str, bool]]:
    """How an image may be written from one of the roots: as given, with slashes, without its first folders (True)."""
    yield name, False
    parts = plain(name).split("/")
    yield from [("/".join(parts), False)] if "\\" in name else []
    yield from (("/".join(parts[k:]), True) for k in range(1, len(parts)))
