"""Where the files of images are, which annotations name in their own ways."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Dict, Iterable, Iterator, Mapping, Optional, Sequence, Tuple

from ..errors import UsageError
from .stream import SUFFIXES, Say, images_of, is_image

OPTIONS = "convert.json"  # lies in each folder that a conversion has made

# The splits that a name tells of, as whole words: "trainval" is both, "valley" is none.
SPLIT = re.compile("(?:(?<![a-z])|(?<=train))(train|val|test)(?:ing|id|idation)?(?![a-uw-z])")


def fits(folder: str, source: str) -> bool:
    """Whether a folder may hold images of a source; that of another split may not: val.json has none in "train".

    Images of several splits may have the same names.
    """
    splits = SPLIT.findall(os.path.splitext(os.path.basename(source))[0].lower())
    return not splits or set(SPLIT.findall(folder.lower())) <= set(splits)


class ImageFinder:
    """Finds the file of an image as annotations name it: as given or nearly so, with a suffix added, without its first
    folders, or, where it has no folder, by its name alone.

    Parameters
    ----------
    source : the annotations, a file or a folder
    usual : folders where images of its format are, from there; that of the source's own name is another
    images : the folder that images are named from, in place of these
    say : tells the user
    """

    def __init__(self, source: str, usual: Sequence[str], images: Optional[str], say: Say):
        self.source, self.images, self.say = source, images, say
        home = source if os.path.isdir(source) else os.path.dirname(source) or "."
        own = os.path.splitext(os.path.basename(source))[0]
        roots = [home, *(os.path.join(home, folder) for folder in (own, *usual) if fits(folder, source))]
        self.searched = images or home
        self.roots = list(filter(os.path.isdir, dict.fromkeys(map(os.path.normpath, [images] if images else roots))))
        self.suffix = ""
        self.names: Dict[bool, Dict[str, str]] = {}
        self.shortened: Dict[str, str] = {}  # what was found without its first folders

    def find(self, name: str) -> str:
        """The path; that in the first root where there is none."""
        suffixes = ("",) if is_image(name) else dict.fromkeys((self.suffix, "", *SUFFIXES, *map(str.upper, SUFFIXES)))
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
        return found or os.path.normpath(os.path.join(self.roots[0] if self.roots else "", name))

    def check(self, names: Mapping[str, str]) -> None:
        """Raise a UsageError where two of {name: path} are one file only because their folders are not there."""
        for name, path in names.items() if self.shortened else ():
            other = self.shortened.get(path, plain(name))
            if other != plain(name):
                raise UsageError(f"{path} would be both {name} and {other}; expected a file for each. See --images.")

    def by_name(self, name: str) -> Optional[str]:
        """The image of this name, with or without its suffix, anywhere below the folder searched; None if any two of
        its images have one name, as what is missing would be taken for another."""
        whole = is_image(name)
        if whole not in self.names:
            found: Dict[str, str] = {}
            for path in self.below():
                key = composed(os.path.basename(path))
                key = key if whole else os.path.splitext(key)[0]
                if found.setdefault(key, path) != path:
                    told = f"{found[key]} and {path} have one name"
                    self.say(f"{told}, so no image is looked for by its name alone below {self.searched}.")
                    found = {}
                    break
            self.names[whole] = found
        return self.names[whole].get(composed(name))

    def below(self) -> Iterable[str]:
        """All image files below the folder searched, each once, but those of runs in the folder of a conversion."""
        for folder, folders, names in os.walk(self.searched):
            if OPTIONS in names:
                folders[:], names = [], []
            folders[:] = sorted(name for name in folders if self.images or fits(name, self.source))
            yield from (os.path.normpath(os.path.join(folder, name)) for name in images_of(names))


def plain(name: str) -> str:
    return os.path.normpath(name.replace("\\", "/"))


def composed(name: str) -> str:
    """With ü as one character, which macOS writes as two."""
    return unicodedata.normalize("NFC", name)


def spellings(name: str) -> Iterator[Tuple[str, bool]]:
    """How an image may be written from one of the roots: as given, with slashes, with its suffix in capitals or not,
    with letters of one or of two characters, without its first folders (True)."""
    yield name, False
    whole = plain(name) if "\\" in name else name
    stem, suffix = os.path.splitext(whole)
    letters = (composed(whole), unicodedata.normalize("NFD", whole))
    forms = dict.fromkeys((whole, stem + suffix.lower(), stem + suffix.upper(), *letters))
    yield from ((form, False) for form in forms if form != name)
    for parts in (plain(form).split("/") for form in forms):
        yield from (("/".join(parts[k:]), True) for k in range(1, len(parts)))
