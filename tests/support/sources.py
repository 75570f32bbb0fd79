"""Tiny annotated images in each format that `convert` reads, with awkward names and contents."""

import json
import os
from pathlib import Path

import cv2
import numpy as np

SIZE = 24


def picture(labels, classes, size=SIZE):
    """An image made of its labels: patch k is white where class k is a label, black where not."""
    side = int(np.ceil(np.sqrt(classes)))
    patches = np.zeros(side * side, np.uint8)
    patches[list(labels)] = 255
    image = np.kron(patches.reshape(side, side), np.ones((size // side, size // side), np.uint8))
    return np.dstack([image] * 3)


def write_image(path, image=None):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = picture([0], 4) if image is None else image
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())  # imwrite takes no name of other characters
    return path


def write_images(root, names):
    for name in names:
        write_image(Path(root) / name)


def write_text(path, text, encoding="utf-8"):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return str(path)


def tagged(folder, count=40, classes=4, seed=0, root="photos", unique=True):
    """`count` images made of their labels, each with a corner of its own if `unique`, and a CSV of tags; its path."""
    rng = np.random.RandomState(seed)
    folder = Path(folder)
    rows = [np.flatnonzero(rng.rand(classes) < 0.4) for _ in range(count)]
    for k, row in enumerate(rows):
        image = picture(row, classes)
        if unique:
            image[0, 0], image[0, 1] = divmod(k, 256)
        write_image(folder / root / f"{k:03d}.png", image)
    lines = [f"{k:03d}.png,{'|'.join(f'c{c}' for c in row) or 'No Finding'}" for k, row in enumerate(rows)]
    return write_text(folder / "tags.csv", "\n".join(["image,tags", *lines]))


def voc_main(folder):
    """Two classes over three images, one of them difficult."""
    write_images(folder / "JPEGImages", ["2008_1.jpg", "2008_2.jpg", "2008 3.jpg"])
    sets = folder / "ImageSets" / "Main"
    write_text(sets / "aeroplane_train.txt", "2008_1 -1\r\n2008_2  1\r\n")
    write_text(sets / "aeroplane_val.txt", "2008 3  0\r\n")
    write_text(sets / "pottedplant_trainval.txt", "2008_1  1\n2008_2 -1\n2008 3  1\n")
    write_text(sets / "pottedplant_train.txt", "2008_1 -1\n")  # not read beside trainval
    write_text(sets / "train.txt", "2008_1\n2008_2\n")
    return folder


def voc_xml(folder):
    item = "<object><name>{}</name><difficult>{}</difficult></object>"
    for name, items in (
        ("a b", [("dog", 0), ("dog", 1)]),
        ("ü", [("cat", 1)]),
        ("c", []),
    ):
        write_image(folder / "JPEGImages" / f"{name}.jpg")
        objects = "".join(item.format(*entry) for entry in items)
        text = f"<annotation><filename>{name}.jpg</filename>{objects}</annotation>"
        write_text(folder / "Annotations" / f"{name}.xml", text)
    return folder


def coco(folder):
    write_images(folder / "train2017", ["000001.jpg", "000002.jpg", "000003.jpg"])
    content = {
        "info": {"year": 2017, "nested": [1, {"a": "]}"}]},
        "images": [{"id": 10 * k, "file_name": f"00000{k}.jpg"} for k in (1, 2, 3)],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 90, "segmentation": [[1.5, 2, 3]]},
            {"id": 2, "image_id": 10, "category_id": 1},
            {"id": 3, "image_id": 20, "category_id": 90},
            {"id": 4, "image_id": 20, "category_id": 90},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}],
    }
    return write_text(folder / "annotations" / "instances_train2017.json", json.dumps(content, indent=1))


def csv_tags(folder):
    """Spaces, quotes and commas in names, a row twice, a missing image, Windows line ends, a byte order mark."""
    write_images(folder / "images", ["a b.jpg", 'q"uote, comma.jpg', "Ärger 日本.jpg", "unlisted.jpg"])
    text = (
        "Image Index,Finding Labels,Patient Age\r\n"
        "a b.jpg,Mass|Pleural Thickening,58\r\n"
        '"q""uote, comma.jpg",No Finding,60\r\n'
        "Ärger 日本.jpg,Mass,61\r\n"
        "Ärger 日本.jpg,Mass,61\r\n"
        "gone.jpg,Hernia,62\r\n"
    )
    return write_text(folder / "data.csv", text, "utf-8-sig")


def csv_columns(folder):
    write_images(folder / "images", ["p1/view1.jpg", "p2/view1.jpg", "p3/view1.jpg"])
    text = (
        "Path,Sex,Age,No Finding,Edema,Pneumonia\n"
        "images/p1/view1.jpg,Female,68,1.0,,\n"
        "images/p2/view1.jpg,Male,87,,1.0,-1.0\n"
        "images/p3/view1.jpg,Male,83,,0.0,1.0\n"
    )
    return write_text(folder / "train.csv", text)


def celeba(folder):
    write_images(folder / "img_align_celeba", ["000001.jpg", "000002.jpg"])
    return write_text(folder / "list_attr_celeba.txt", "2\r\nBald Smiling \r\n000001.jpg -1  1\r\n000002.jpg  1 -1\r\n")


def nus_wide(folder):
    write_images(folder / "Flickr", ["actor/0001_2.jpg", "zoo/0002_7.jpg"])
    write_text(folder / "ImageList" / "Imagelist.txt", "actor\\0001_2.jpg\r\nzoo\\0002_7.jpg\r\n")
    for name, column in (("airport", "1\n0\n"), ("sky", "1\n1\n")):
        write_text(folder / "Groundtruth" / "AllLabels" / f"Labels_{name}.txt", column)
    return folder


def open_images(folder):
    write_images(folder / "images", ["000a.jpg", "000b.jpg"])
    write_text(folder / "oidv7-class-descriptions.csv", '/m/01,"Cat, tabby"\n/m/02,Dog\n')
    text = (
        "ImageID,Source,LabelName,Confidence\n"
        "000a,verification,/m/01,1\n"
        "000a,verification,/m/02,0\n"
        "000b,crowdsource-verification,/m/02,1\n"
        "000b,machine,/m/01,0.7\n"
    )
    return write_text(folder / "train-annotations-human-imagelabels.csv", text)


def imaterialist(folder):
    write_images(folder / "images", ["1.jpg", "2.jpg"])
    content = {
        "images": [{"url": "http://x/1.jpg", "imageId": "1"}, {"url": ["u"], "imageId": "2"}],
        "annotations": [{"imageId": "1", "labelId": ["95", "7"]}, {"imageId": "2", "labelId": ["7"]}],
    }
    return write_text(folder / "train.json", json.dumps(content))


def list_indices(folder):
    write_images(folder, ["a 1.jpg", "b.jpg", "c.jpg"])
    return write_text(folder / "train.txt", "a 1.jpg 3 0 \nb.jpg\t1\nc.jpg\n")


def list_values(folder):
    write_images(folder, ["a 1.jpg", "b.jpg"])
    return write_text(folder / "train.txt", "a 1.jpg 0 1 0 -1\nb.jpg 1 1 0 0.5\n")


def folders(folder):
    """c.jpg is linked into a second class, d.jpg is hard-linked."""
    write_images(folder, ["cats/a.jpg", "cats/c.jpg", "big dogs/b.jpg", "cats/d.jpg"])
    (folder / "big dogs" / "c.jpg").symlink_to(folder / "cats" / "c.jpg")
    os.link(str(folder / "cats" / "d.jpg"), str(folder / "big dogs" / "other.jpg"))
    return folder
