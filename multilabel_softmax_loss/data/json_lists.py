"""Annotation formats that are JSON, an object of lists: COCO instances, iMaterialist."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Any, Dict, List

from ..errors import UsageError, shortlist
from ..files import open_file
from .stream import Say, Stream
from .text import json_elements


def json_keys(path: str) -> List[str]:
    """Names in 64 kB each of a JSON file's start, middle and end."""
    if not path.lower().endswith(".json") or os.path.isdir(path):
        return []
    text = ""
    with open_file(path, "rb") as file:
        rest = max(os.path.getsize(path) - (1 << 16), 0)
        for place in sorted({0, rest // 2, rest}):
            file.seek(place)
            text += file.read(1 << 16).decode("utf-8", "replace")
    return re.findall(r'"(\w+)"\s*:', text)


def field(item: Any, name: str, path: str) -> Any:
    if not isinstance(item, dict) or name not in item:
        raise UsageError(f"{path} has {str(item)[:60]!r}, which has no {name!r}.")
    return item[name]


def word(item: Any, name: str, path: str) -> Any:
    """A field that names something: text, or a number."""
    value = field(item, name, path)
    if not isinstance(value, (str, int, float)) or not str(value).strip():
        raise UsageError(f"{path} has {str(item)[:60]!r}, whose {name!r} is {value!r}; expected a name or a number.")
    return value.strip() if isinstance(value, str) else value


def numbered(found: Dict[Any, str], item: Any, name: str, path: str) -> None:
    """Put the `name` of an item that has an "id" among those found."""
    number, value = word(item, "id", path), str(word(item, name, path))
    if found.setdefault(number, value) != value:
        raise UsageError(
            f"{path} has the id {number!r} twice, of {found[number]!r} and {value!r}; expected one of each."
        )


def read_coco(path: str, say: Say) -> Stream:
    names: Dict[Any, str] = {}
    images: Dict[Any, str] = {}
    for key, item in json_elements(path):
        if key == "categories":
            numbered(names, item, "name", path)
        elif key == "images":
            numbered(images, item, "file_name", path)
    ordered = [names[number] for number in sorted(names, key=lambda id: (isinstance(id, str), id))]
    shared = [name for name, count in Counter(ordered).items() if count > 1]
    if shared:  # as in exports that have a category of them all besides
        say(f"Categories of one name are one class: {shortlist(shared)}.")
    yield None, dict.fromkeys(ordered, 0.0)
    for name in images.values():  # those without objects too
        yield name, {}
    for key, item in json_elements(path):
        if key == "annotations":
            image, category = word(item, "image_id", path), word(item, "category_id", path)
            if image not in images or category not in names:
                what = f"image_id {image}" if image not in images else f"category_id {category}"
                raise UsageError(f"{path} has an annotation of {what}, which is not listed.")
            yield images[image], {names[category]: 1.0}


def read_imaterialist(path: str, say: Say) -> Stream:
    for key, item in json_elements(path):
        if key == "images":
            yield str(word(item, "imageId", path)), {}
        elif key == "annotations":
            labels = field(item, "labelId", path)
            labels = labels if isinstance(labels, list) else [labels]
            labels = [word({**item, "labelId": label}, "labelId", path) for label in labels]
            yield str(word(item, "imageId", path)), {str(label): 1.0 for label in labels}
