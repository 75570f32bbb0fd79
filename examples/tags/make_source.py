"""Make a folder as one finds it in practice: photographs, their tags in two formats, and what is wrong with some.

    python make_source.py FOLDER [--images 400] [--seed 0]

The pictures are cut from the two photographs that come with scikit-learn, a Chinese temple and a flower, and have up to
two of its handwritten digits on top. FOLDER/photos has the JPEGs; tags.csv names the tags of each; checked.txt has a
value per tag: 1, 0, and -1 where nobody looked.
"""

import argparse
import csv
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits, load_sample_images

TAGS = ["temple", "flower", "zero", "one", "four"]
DIGITS = {0: "zero", 1: "one", 4: "four"}
SIDE = 96


def make_image(rng, photographs, digits):
    """A picture, and its tags."""
    chosen = [k for k in (0, 1) if rng.rand() < 0.6] or [rng.randint(2)]
    picture = np.concatenate([cut(rng, photographs[k], SIDE, SIDE // len(chosen)) for k in chosen], axis=1)
    tags = {TAGS[k] for k in chosen}
    numbers = [number for number in DIGITS if rng.rand() < 0.35]
    for place, number in enumerate(numbers[:2]):
        digit = digits.images[rng.choice(np.flatnonzero(digits.target == number))] / 16
        ink = cv2.resize(digit, (40, 40), interpolation=cv2.INTER_CUBIC).clip(0, 1)[:, :, None]
        top, left = rng.randint(SIDE - 40), rng.randint(8) + 48 * place
        spot = picture[top : top + 40, left : left + 40]
        spot[...] = (1 - ink) * spot + ink * [40, 250, 250]
        tags.add(DIGITS[number])
    return picture, tags


def cut(rng, photograph, height, width):
    top, left = rng.randint(photograph.shape[0] - height), rng.randint(photograph.shape[1] - width)
    return photograph[top : top + height, left : left + width].copy()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.RandomState(arguments.seed)
    photographs = [image[:, :, ::-1] for image in load_sample_images().images]
    digits = load_digits()
    photos = arguments.folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    rows = []
    for k in range(arguments.images):
        picture, tags = make_image(rng, photographs, digits)
        name = f"holiday {k:03d}.jpg"
        cv2.imwrite(str(photos / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
        rows.append((name, tags))
    spoil(photos, rows)
    with open(arguments.folder / "tags.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "tags"), *((name, " ".join(sorted(tags))) for name, tags in rows)])
    with open(arguments.folder / "checked.txt", "w", encoding="utf-8") as file:
        for name, tags in rows:
            values = [-1 if rng.rand() < 0.3 else int(tag in tags) for tag in TAGS]
            file.write(f"{name} {' '.join(map(str, values))}\n")
    (arguments.folder / "names.txt").write_text("\n".join(TAGS) + "\n")


def spoil(photos, rows):
    """Of every hundred images one is cut, one corrupted, one gone, two are copies of others, and two have no tags."""
    for start in range(0, len(rows) - 20, 100):
        cut_one, corrupted, gone, copy, untagged = (photos / rows[start + k][0] for k in (3, 5, 7, 11, 13))
        data = cut_one.read_bytes()
        cut_one.write_bytes(data[: len(data) // 2])
        data = corrupted.read_bytes()
        corrupted.write_bytes(data[:1500] + b"\xff\x01" * 200 + data[1900:])
        gone.unlink()
        copy.write_bytes((photos / rows[start + 12][0]).read_bytes())
        rows[start + 11] = (copy.name, rows[start + 12][1])
        rows[start + 13] = (untagged.name, set())


if __name__ == "__main__":
    main()
