"""The one stream that every annotation format becomes: (image, {class: value}).

An image is named as the annotations name it. A value is 1 (yes), 0 (no), UNKNOWN, or any other weight >= 0; a class
that is not in the dict is what the format's `absent` says. A class is a name, or, in lists of numbers, its index.
(None, {class: ...}) tells classes and their order, whether or not images have them. What the user has to know is said
through `say`, once for each text.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

from ..errors import UsageError

UNKNOWN = -1.0
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".jpe", ".jp2", ".ppm", ".pgm")
Say = Callable[[str], None]
Stream = Iterator[Tuple[Optional[str], Dict[Any, float]]]


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def images_of(names: Iterable[str]) -> List[str]:
    """The images among the files of a folder, in order, without hidden ones, such as the "._a.jpg" of macOS."""
    return sorted(name for name in names if is_image(name) and name[0] != ".")


def declared(names: Iterable[str], path: str) -> Dict[Any, float]:
    """The classes that a source names, in their order; a UsageError where two have one name."""
    classes: Dict[Any, float] = {}
    for name in names:
        if name in classes:
            raise UsageError(f"{path} has two classes of the name {name!r}; expected a name for each.")
        classes[name] = 0.0
    return classes
