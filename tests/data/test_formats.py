"""Each annotation format, from a tiny source with awkward contents to the labels that must come out."""

import json
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from support import sources

from multilabel_softmax_loss.data.formats import FORMATS, recognize
from multilabel_softmax_loss.data.source import gather, summary
from multilabel_softmax_loss.data.split import listed
from multilabel_softmax_loss.data.stream import UNKNOWN
from multilabel_softmax_loss.errors import UsageError

Q = 'q"uote, comma.jpg'
EXPECTED = {
    "voc-main": (
        ["aeroplane", "pottedplant"],
        {"2008_1.jpg": [0, 1], "2008_2.jpg": [1, 0], "2008 3.jpg": [UNKNOWN, 1]},
    ),
    "voc-xml": (["cat", "dog"], {"a b.jpg": [0, 1], "ü.jpg": [UNKNOWN, 0], "c.jpg": [0, 0]}),
    "coco": (
        ["person", "stop sign", "toothbrush"],
        {"000001.jpg": [1, 0, 1], "000002.jpg": [0, 0, 1], "000003.jpg": [0, 0, 0]},
    ),
    "csv-tags": (
        ["Hernia", "Mass", "Pleural Thickening"],
        {"a b.jpg": [0, 1, 1], Q: [0, 0, 0], "Ärger 日本.jpg": [0, 1, 0], "gone.jpg": [1, 0, 0]},
    ),
    "csv-columns": (
        ["Edema", "Pneumonia"],
        {"p1/view1.jpg": [0, 0], "p2/view1.jpg": [1, UNKNOWN], "p3/view1.jpg": [0, 1]},
    ),
    "celeba": (["Bald", "Smiling"], {"000001.jpg": [0, 1], "000002.jpg": [1, 0]}),
    "nus-wide": (["airport", "sky"], {"actor/0001_2.jpg": [1, 1], "zoo/0002_7.jpg": [0, 1]}),
    "open-images": (["Cat, tabby", "Dog"], {"000a.jpg": [1, 0], "000b.jpg": [UNKNOWN, 1]}),
    "imaterialist": (["7", "95"], {"1.jpg": [1, 1], "2.jpg": [1, 0]}),
    "list-indices": (["0", "1", "2", "3"], {"a 1.jpg": [1, 0, 0, 1], "b.jpg": [0, 1, 0, 0], "c.jpg": [0] * 4}),
    "list-values": (["0", "1", "2", "3"], {"a 1.jpg": [0, 1, 0, UNKNOWN], "b.jpg": [1, 1, 0, 0.5]}),
    "folders": (
        ["big dogs", "cats"],
        {"cats/a.jpg": [0, 1], "cats/c.jpg": [1, 1], "big dogs/b.jpg": [1, 0], "big dogs/other.jpg": [1, 1]},
    ),
}


def told(found):
    """{path: its row of labels}"""
    labels = found.labels
    return {path: labels.dense(k).tolist() for k, path in enumerate(labels.paths)}


def assert_told(found, classes, expected):
    assert found.labels.classes == classes
    rows = told(found)
    assert len(rows) == len(expected)
    for name, row in expected.items():
        assert [rows[path] for path in rows if path.replace(os.sep, "/").endswith("/" + name)] == [row], name


@pytest.mark.parametrize("name", FORMATS)
def test_a_source_is_recognised_and_gives_its_labels(name, tmp_path):
    source = getattr(sources, name.replace("-", "_"))(tmp_path)
    assert recognize(str(source)) == name
    found = gather([str(source)])
    assert_told(found, *EXPECTED[name])
    missing = [path for path in found.labels.paths if not os.path.isfile(path)]
    assert [os.path.basename(path) for path in missing] == (["gone.jpg"] if name == "csv-tags" else [])
    assert str(len(found.labels.paths)) in summary(found)


def test_the_example_of_a_summary_says_which_classes_are_unknown(tmp_path):
    found = gather([sources.write_text(tmp_path / "list.txt", "a.jpg 0.5 1 -1 -1 0\n")], given="list-values")
    assert "a.jpg: 0 0.5, 1; unknown: 2, 3\n" in summary(found) + "\n"


def test_what_cannot_be_known_is_asked(tmp_path):
    source = sources.write_text(tmp_path / "list.txt", "a.jpg 0 1\nb.jpg 1 0\n")
    with pytest.raises(UsageError, match=r"may be several: list-indices .*, list-values .*--format"):
        recognize(source)
    assert gather([source], given="list-values").labels.dense(0).tolist() == [0, 1]
    assert gather([source], given="list-indices").labels.dense(0).tolist() == [1, 1]
    with pytest.raises(UsageError, match="looks like none of the formats known: voc-main"):
        recognize(sources.write_text(tmp_path / "what.yaml", "a: b\n"))
    attributes = "2\nimage_name  attribute_labels\nimg/1.jpg   -1 1 -1\nimg/2.jpg   -1 1 1\n"
    with pytest.raises(UsageError, match="looks like none .* or write its labels as one of them"):
        recognize(sources.write_text(tmp_path / "list_attr_img.txt", attributes))  # of DeepFashion
    with pytest.raises(UsageError, match="has the row 'img/1.jpg   -1 1 -1'"):
        gather([str(tmp_path / "list_attr_img.txt")], given="celeba")
    with pytest.raises(UsageError, match="looks like none"):
        recognize(str(sources.voc_main(tmp_path / "voc") / "ImageSets" / "Main" / "aeroplane_val.txt"))
    nus_wide = sources.write_text(tmp_path / "nus" / "ImageList" / "Imagelist.txt", "a.jpg\n")
    with pytest.raises(UsageError, match=r"nus has no Groundtruth/AllLabels/Labels_\*.txt; expected the folder"):
        gather([os.path.dirname(os.path.dirname(nus_wide))])
    with pytest.raises(UsageError, match=r"is not there; .*\. Did you mean '.*list.txt'\?"):
        recognize(str(tmp_path / "lisst.txt"))
    with pytest.raises(UsageError, match="no text of UTF-8"):
        recognize(sources.write_text(tmp_path / "latin.csv", "image,tags\nä.jpg,x\n", "latin-1"))


@pytest.mark.parametrize(
    "rows, indices, values",
    [
        pytest.param(["a.jpg 3 7", "b.jpg 1"], True, False, id="rows of different lengths"),
        pytest.param(["a.jpg 0 0 1", "b.jpg 1 0 1"], False, True, id="an index is not listed twice"),
        pytest.param(["a.jpg 0 -1", "b.jpg 1 0"], False, True, id="no index is -1"),
        pytest.param(["a.jpg 0 5", "b.jpg 1 0"], True, False, id="5 is no value"),
        pytest.param(["a 3 7.jpg 0 5", "b.jpg 1 0 2"], True, False, id="numbers in a name"),
    ],
)
def test_lists_of_indices_and_of_values_are_told_apart(rows, indices, values, tmp_path):
    from multilabel_softmax_loss.data.formats import list_kinds

    assert list_kinds(sources.write_text(tmp_path / "l.txt", "\n".join(rows))) == (indices, values)


def test_minus_one_is_no_where_a_list_has_no_zeros(tmp_path):
    found = gather([sources.write_text(tmp_path / "l.txt", "a.jpg 1 -1\nb.jpg -1 1\n")])
    assert [found.labels.dense(k).tolist() for k in (0, 1)] == [[1, 0], [0, 1]]
    assert "-1 is taken for no, as there are no zeros." in found.notes


@pytest.mark.parametrize("folders", [["train2017", "val2017", "annotations"], ["train-jpg", "test-jpg"], ["images"]])
def test_folders_of_splits_or_of_all_images_are_no_classes(folders, tmp_path):
    for name in folders:
        sources.write_images(tmp_path, [f"{name}/a.jpg"] if name != "annotations" else [])
    with pytest.raises(UsageError, match="looks like none"):
        gather([str(tmp_path)])
    assert gather([str(tmp_path)], given="folders").labels.classes == sorted(set(folders) - {"annotations"})
    sources.write_images(tmp_path, ["train/b.jpg", "bus/c.jpg"])
    assert recognize(str(tmp_path)) == "folders"


IMATERIALIST = '{"images": [], "annotations": [{"imageId": "1", "labelId": ["7"]}]}'


def coco_text(**lists):
    """COCO instances with one object, in place of these lists of it."""
    images, categories = [{"id": 1, "file_name": "a.jpg"}], [{"id": 5, "name": "cat"}]
    objects = [{"image_id": 1, "category_id": 5}]
    return json.dumps({"images": images, "annotations": objects, "categories": categories, **lists})


FAULTS = {
    "a row too short": ("a.csv", "image,tags\na.jpg,x\nb.jpg\n", "row 3, has 1 cells; expected 2"),
    "values for tags": (
        "a.csv",
        "image,labels\na.jpg,0 1\nb.jpg,0 1 0\n",
        "row 3, has '0 1 0' for tags; expected names",
    ),
    "a list of values for tags": ("a.csv", 'image,labels\na.jpg,"[0, 1, 0]"\n', "or a column for each class"),
    "no value": ("a.csv", "image,cat\n" + "a.jpg,1\n" * 2000 + "b.jpg,2\n", "row 2002, has '2' for 'cat'"),
    "no header": (
        "a.csv",
        "a.jpg,cat dog\nb.jpg,dog\n",
        "has the image 'a.jpg' in its first row; expected names of columns",
    ),
    "no header, a column per class": ("a.csv", "a.jpg,0,1\nb.jpg,1,0\n", "has the image 'a.jpg' in its first row"),
    "a quote not closed": ("a.csv", 'image,cat,note\na.jpg,1,"x\nb.jpg,0,y\n', "line 3: unexpected end of data"),
    "a quote closed too late": (
        "a.csv",
        'image,tags\na.jpg,"x\nb.jpg,y"\n',
        r"row 2, has 'x\\nb.jpg,y', of several lines",
    ),
    "an image in quotes over two rows": ("a.csv", 'image,cat\n"a.jpg,1\nb.jpg",0\n', "of several lines", "csv-columns"),
    "two columns of one name": ("a.csv", "image,cat,cat\na.jpg,1,0\n", "two classes of the name 'cat'"),
    "an attribute missing": ("a.txt", "2\nBald Young\n1.jpg 1 -1\n2.jpg 1\n", "has the row '2.jpg 1'"),
    "no attributes": ("list_attr_celeba.txt", "2\n", "has 1 lines; expected the number of images", "celeba"),
    "no class index": ("a.txt", "a.jpg 3\nb.jpg 99999999999\n", "has the row 'b.jpg 99999999999'"),
    "a row of Open Images cut": ("a.csv", "ImageID, LabelName ,Confidence\n0a,/m/1,1\n0b,/m\n", "row 3, has 2 cells"),
    "no columns of Open Images": ("a.csv", "a,b\n", "no columns ImageID, LabelName", "open-images"),
    "a value missing": ("a.txt", "a.jpg 0 1 1\n" * 1000 + "b.jpg 0 1\n", "expected 3 values"),
    "a value too large": ("a.txt", "a.jpg 0 1 1\n" * 1000 + "b.jpg 0 1 1e39\n", "has the row 'b.jpg 0 1 1e39'"),
    "JSON cut": ("a.json", '{"images": [{"imageId": "1"}], "annotations": [{"labelId": ["1"]}', "has no 'imageId'"),
    "no folder of NUS-WIDE": ("a.txt", "a.jpg 1\n", "has no ImageList/Imagelist.txt; expected the folder", "nus-wide"),
    "an attribute twice": ("a.txt", "1\nBald Bald\n1.jpg 1 -1\n", "two classes of the name 'Bald'"),
    "two JSON files in one": ("a.json", IMATERIALIST * 2, "more follows where it ends"),
    "a label that is nothing": (
        "a.json",
        IMATERIALIST.replace('"7"', "null"),
        "'labelId' is None; expected a name or a",
    ),
    "a name that is a list": ("a.json", coco_text(categories=[{"id": 1, "name": ["x"]}]), "whose 'name' is .'x'."),
    "an id of two images": (
        "a.json",
        coco_text(images=[{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]),
        "the id 1 twice, of 'a.jpg' and 'b.jpg'",
    ),
    "an id of two categories": (
        "a.json",
        coco_text(categories=[{"id": 5, "name": "cat"}, {"id": 5, "name": "dog"}]),
        "the id 5 twice, of 'cat' and 'dog'",
    ),
    "an image that is not listed": (
        "a.json",
        '{"categories": [], "images": [{"id": 1, "file_name": "a"}],'
        '"annotations": [{"image_id": 2, "category_id": 1}]}',
        "annotation of image_id 2, which is not listed",
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_a_faulty_source_is_a_sentence(fault, tmp_path):
    name, text, message, *given = fault
    with pytest.raises(UsageError, match=message):
        gather([sources.write_text(tmp_path / name, text)], given=given[0] if given else None)


def test_categories_of_one_name_are_one_class(tmp_path):
    text = coco_text(categories=[{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}, {"id": 0, "name": "cat "}])
    found = gather([sources.write_text(tmp_path / "a.json", text)])
    assert (found.labels.classes, found.labels.dense(0).tolist()) == (["cat", "dog"], [1, 0])
    assert "Categories of one name are one class: cat." in found.notes


@pytest.mark.parametrize(
    "home, images",
    [(".", "."), ("annotations", "images"), ("Annotations", "JPEGImages")],
    ids=["beside", "lower", "voc"],
)
def test_xml_is_found_beside_its_images_and_in_folders_of_its_own(home, images, tmp_path):
    sources.write_images(tmp_path / images, ["a.jpg", "b.png"])
    for name, label in (("a.jpg", "dog"), ("b.png", "cat")):
        text = f"<annotation><filename>{name}</filename><object><name>{label}</name></object></annotation>"
        sources.write_text(tmp_path / home / f"{name[0]}.xml", text)
    for source in {tmp_path, tmp_path / home}:
        assert recognize(str(source)) == "voc-xml"
        found = gather([str(source)])
        assert_told(found, ["cat", "dog"], {"a.jpg": [0, 1], "b.png": [1, 0]})
        assert all(map(os.path.isfile, found.labels.paths))


def test_a_link_to_what_is_not_there_is_a_sentence(tmp_path):
    folder = sources.voc_xml(tmp_path)
    (folder / "Annotations" / "z.xml").symlink_to("pulled-later.xml")
    with pytest.raises(UsageError, match=r"z.xml cannot be read: No such file or directory"):
        gather([str(folder)])


def test_xml_of_another_kind_is_no_source(tmp_path):
    sources.write_text(
        sources.folders(tmp_path) / "annotations.xml", "<annotations><image id='0'/></annotations>"
    )  # of CVAT
    assert recognize(str(tmp_path)) == "folders"


def test_two_annotations_of_one_image_are_a_sentence(tmp_path):
    folder = sources.voc_xml(tmp_path)
    assert "another name" not in "".join(gather([str(folder)]).notes)
    text = (folder / "Annotations" / "c.xml").read_text()
    sources.write_text(folder / "Annotations" / "d.xml", text.replace("c.jpg", "C:\\old\\e.jpg"))
    note = [note for note in gather([str(folder)]).notes if "1 annotations tell of an image of another name" in note]
    assert note[0].endswith("d.xml: C:\\old\\e.jpg.")
    sources.write_text(folder / "Annotations" / "copy.xml", text)
    with pytest.raises(UsageError, match=r"c.xml and \S*copy.xml both name the image 'c.jpg'"):
        gather([str(folder)])


def test_what_a_source_may_lack_is_said(tmp_path):
    def notes(source):
        return "\n".join(gather([str(source)]).notes)

    celeba = sources.write_text(tmp_path / "a.txt", "3\nBald Young\n1.jpg 1 -1\n2.jpg 1 1\n")
    assert "The first line tells of 3 images; 2 follow." in notes(celeba)
    voc = sources.voc_main(tmp_path / "voc")
    assert "fewer" not in notes(voc)
    kept = os.path.join(str(voc), "ImageSets", "Main", "val.txt")
    assert f"The images of train and trainval and val are read together; --split-file {kept} keeps" in notes(voc)
    sources.write_text(voc / "ImageSets" / "Main" / "cat_trainval.txt", "2008_1 1\n2008_2 -1\n")
    assert "fewer than 3 images are absent (--absent) in the others: cat 2." in notes(voc)
    folders = sources.folders(tmp_path / "folders")
    sources.write_text(folders / "out" / "convert.json", "{}")
    assert notes(folders) == ""
    for name in ("cats", "empty"):
        sources.write_text(folders / name / "._a.jpg", "of macOS")
    sources.write_images(folders, ["cats/old/x.jpg", "y.jpg", ".trash/z.jpg"])
    sources.write_text(folders / "cats" / "a.heic", "")
    note = notes(folders)
    assert note.startswith("3 files are no images right in")
    assert all(name in note for name in (os.path.join("old", "x.jpg"), "y.jpg", "a.heic"))
    assert_told(gather([str(folders)]), *EXPECTED["folders"])


@pytest.mark.parametrize(
    "cell, tags",
    [
        pytest.param("['cat', \"dog's, or cat's\"]", ["cat", "dog's, or cat's"], id="Python"),
        pytest.param('["cat", "big dog"]', ["big dog", "cat"], id="JSON"),
        pytest.param("['cat' 'big dog']", ["big dog", "cat"], id="NumPy"),
        pytest.param("[7, 16]", ["7", "16"], id="numbers"),
        pytest.param("{'cat', 'big dog'}", ["big dog", "cat"], id="a set"),
        pytest.param(" cat, big dog", ["big dog", "cat"], id="no list"),
    ],
)
def test_tags_may_be_a_list(cell, tags, tmp_path):
    quoted = cell.replace('"', '""')
    source = sources.write_text(tmp_path / "a.csv", f'image, tags, note\na.jpg, "{quoted}",\nb.jpg,[],\n  \n')
    found = gather([source])
    assert_told(found, tags, {"a.jpg": [1, 1], "b.jpg": [0, 0]})
    assert "The other columns are left out: note." in found.notes


@pytest.mark.parametrize(
    "header, cells, classes",
    [
        pytest.param("image_id,class_name,class_id", ("big dog,3", "cat,0"), ["big dog", "cat"], id="objects"),
        pytest.param("ImageId,EncodedPixels,ClassId", (f"{'1 2 ' * 50000},7", "3 4,16"), ["7", "16"], id="masks"),
    ],
)
def test_rows_of_objects_name_their_class(header, cells, classes, tmp_path):
    source = sources.write_text(tmp_path / "a.csv", f"{header}\na,{cells[0]}\na,{cells[1]}\nb,{cells[1]}\n")
    assert_told(gather([source]), classes, {"a": [1, 1], "b": [0, 1]})


def test_numbers_in_the_names_of_classes_are_sorted_by_value(tmp_path):
    found = gather([sources.write_text(tmp_path / "a.csv", "image,tags\na.jpg,10² 10 9 x10 x9 ²\n")])
    assert found.labels.classes == ["9", "10", "10²", "x9", "x10", "²"]


def test_labels_as_pandas_and_r_write_them(tmp_path):
    text = "mask,image,cat,dog\nm.png,a.jpg,True,NA\nm.png,b.jpg,False,true\nm.png,c.jpg,NaN,\n"
    found = gather([sources.write_text(tmp_path / "a.csv", text)])
    assert_told(found, ["cat", "dog"], {"a.jpg": [1, UNKNOWN], "b.jpg": [0, 1], "c.jpg": [UNKNOWN, 0]})
    assert {"Empty cells are absent (--absent).", '"NA" and "NaN" are taken for unknown.'} < set(found.notes)
    tags = gather([sources.write_text(tmp_path / "c.csv", "image,tags\na.jpg,cat\nb.jpg,nan\n")])
    assert_told(tags, ["cat"], {"a.jpg": [1], "b.jpg": [0]})
    one = gather([sources.write_text(tmp_path / "b.csv", "image,cat\na.jpg,True\nb.jpg,False\n")])
    assert_told(one, ["cat"], {"a.jpg": [1], "b.jpg": [0]})


def test_classes_of_open_images_that_share_a_name_are_told_apart(tmp_path):
    source = sources.open_images(tmp_path)
    sources.write_text(tmp_path / "class-descriptions-boxable.csv", "/m/01,Seal\n/m/02,Seal\n")
    (tmp_path / "oidv7-class-descriptions.csv").unlink()
    assert gather([source]).labels.classes == ["Seal (/m/01)", "Seal (/m/02)"]


def test_a_class_whose_first_image_comes_late_is_a_class(tmp_path):
    rows = "".join(f"{k}.jpg,1,,,\n" for k in range(2100))
    source = sources.write_text(tmp_path / "a.csv", f"image,cat,dog,note,never\n{rows} z.jpg ,,1,old,\n")
    numbered = sources.write_text(tmp_path / "b.csv", ",image,cat\n0,a.jpg,1\n1,b.jpg,0\n")
    assert gather([numbered]).labels.classes == ["cat"]
    found = gather([source])
    assert found.labels.classes == ["cat", "dog"]
    assert found.labels.dense(2100).tolist() == [0, 1]
    assert os.path.basename(found.labels.paths[2100]) == "z.jpg"
    assert any(note.endswith("are left out: note, never.") for note in found.notes)


def test_images_told_twice_are_merged_and_contradictions_are_unknown(tmp_path):
    text = "a.jpg 0 1 1\nb.jpg 1 0 1\na.jpg 1 1 1\nb.jpg 1 0 1\n"
    found = gather([sources.write_text(tmp_path / "l.txt", text)])
    assert [found.labels.dense(k).tolist() for k in (0, 1)] == [[UNKNOWN, 1, 1], [1, 0, 1]]
    assert any("1 images are told twice and differently" in note for note in found.notes)
    tags = gather([sources.write_text(tmp_path / "t.csv", "image,tags\na.jpg,x\na.jpg,y\n")])
    assert tags.labels.dense(0).tolist() == [1, 1]


def test_sources_of_different_classes_complete_each_other(tmp_path):
    animals = sources.write_text(tmp_path / "animals.csv", "image,cat,dog\na.jpg,1,0\nb.jpg,0,1\n")
    scenes = sources.write_text(tmp_path / "scenes.csv", "image,dog,beach\nb.jpg,0,1\na.jpg,0,1\nc.jpg,1,0\n")
    found = gather([animals, scenes])
    rows = [found.labels.dense(k).tolist() for k in range(3)]
    assert rows == [[1, 0, 1], [0, UNKNOWN, 1], [0, 1, 0]]  # of b.jpg they say both that there is a dog and that not
    assert next(note for note in found.notes if "told twice and differently" in note).endswith("b.jpg.")
    tags = sources.write_text(tmp_path / "tags.csv", "image,tags\na.jpg,beach\n")
    assert gather([animals, tags]).labels.dense(0).tolist() == [1, 0, 1]


def test_classes_wanted_are_chosen_and_ordered_by_a_file(tmp_path):
    source = sources.csv_tags(tmp_path)
    names = sources.write_text(tmp_path / "names.txt", "Mass\nHernia\n")
    found = gather([source], classes=names)
    assert found.labels.classes == ["Mass", "Hernia"]
    assert any("1 classes are not in" in note and "Pleural Thickening (1)" in note for note in found.notes)
    columns = gather([sources.csv_columns(tmp_path)], classes=sources.write_text(tmp_path / "one.txt", "Edema\n"))
    assert any("Pneumonia (1)" in note for note in columns.notes)
    with pytest.raises(
        UsageError, match=r"no image of \S* has a label; the classes that it has are not in \S*: Mass, Pl"
    ):
        gather([source], classes=sources.write_text(tmp_path / "case.txt", "mass\n"))
    for values in ("0 1 1", "1"):
        listed = sources.write_text(tmp_path / "values.txt", f"a.jpg {values}\n")
        with pytest.raises(UsageError, match=f"has {len(values.split())} values for each image, and --classes names 2"):
            gather([listed], classes=names, given="list-values")
    listed = sources.write_text(tmp_path / "list.txt", "a.jpg 0 1\nb.jpg 2\n")
    with pytest.raises(UsageError, match="class 2 is listed, and --classes names 2"):
        gather([listed], classes=names)


def test_images_that_no_row_of_any_source_has_are_counted(tmp_path):
    other = sources.write_text(tmp_path / "other.csv", "image,tags\nother.jpg,x\n")
    sources.write_image(tmp_path / "images" / "other.jpg")
    found = gather([sources.csv_tags(tmp_path), other], images=str(tmp_path / "images"))
    assert any(note.startswith("1 images in") and "unlisted.jpg" in note for note in found.notes)


def test_images_that_rows_name_by_other_paths_have_a_row(tmp_path, monkeypatch):
    monkeypatch.chdir(sources.folders(tmp_path))
    os.remove("big dogs/other.jpg")
    assert gather(["."], images=".").notes == []
    assert gather([sources.write_text("all.txt", f"{tmp_path}/cats/a.jpg 3\n")], images="cats").notes == [
        "2 images in cats have no row and are left out: cats/c.jpg, cats/d.jpg."
    ]


def test_absent_classes_may_be_unknown(tmp_path):
    found = gather([sources.csv_columns(tmp_path)], absent=UNKNOWN)
    assert told(found)[str(tmp_path / "images" / "p3" / "view1.jpg")] == [0, 1]
    assert told(found)[str(tmp_path / "images" / "p1" / "view1.jpg")] == [UNKNOWN, UNKNOWN]
    useless = "no class is known to be absent from any image"
    assert useless not in "".join(found.notes)
    assert useless in "".join(gather([sources.csv_tags(tmp_path)], absent=UNKNOWN).notes)


def test_an_image_is_not_taken_for_another_of_its_name(tmp_path):
    def paths(*names, images="photos"):
        rows = "".join(f"{name},x\n" for name in names)
        found = gather([sources.write_text(tmp_path / "a.csv", "image,tags\n" + rows)], images=str(tmp_path / images))
        return [os.path.relpath(path, str(tmp_path / images)).replace(os.sep, "/") for path in found.labels.paths]

    sources.write_images(tmp_path / "photos", ["p2/v.jpg", "p3/a/w.jpg", "p3/b/w.jpg", "flat.jpg", "masks/m.png"])
    assert paths("p1/v.jpg", "p2/v.jpg") == ["p1/v.jpg", "p2/v.jpg"]  # the first is missing
    assert paths("set/p2/v.jpg", "set/p3/a/w.jpg") == ["p2/v.jpg", "p3/a/w.jpg"]  # without their first folder
    assert paths("/home/of/flat.jpg") == paths("flat") == paths("./flat.jpg") == ["flat.jpg"]
    assert paths("v.jpg", "m") == ["v.jpg", "m"]  # as there are two w.jpg, names alone do not tell which is meant
    notes = gather([str(tmp_path / "a.csv")], images=str(tmp_path / "photos")).notes
    assert any("w.jpg have one name, so no image is looked for by its name alone" in note for note in notes)
    sources.write_images(tmp_path / "other", ["p2/v.jpg", "p3/w.JPG", "flat.PNG"])
    for run in ("one", "two"):  # of earlier conversions
        sources.write_text(tmp_path / "other" / run / "convert.json", "{}")
        sources.write_image(tmp_path / "other" / run / "run" / "curves.png")
    assert paths("v.jpg", "w", "flat", images="other") == ["p2/v.jpg", "p3/w.JPG", "flat.PNG"]
    assert paths("p3/w.jpg", "P2/V.JPG", images="other") == ["p3/w.JPG", "P2/V.JPG"]  # of which the second is missing
    with pytest.raises(
        UsageError, match="flat.jpg would be both one/flat.jpg and two/flat.jpg; expected a file for each"
    ):
        paths("one/flat.jpg", "two/flat.jpg")
    with pytest.raises(UsageError, match="flat.jpg would be both flat.jpg and one/flat.jpg"):
        paths("flat.jpg", "one/flat.jpg")


@pytest.mark.parametrize("written, there", [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("name", ["images/ü/é.jpg", "ü\\é.jpg", "é", "deep/é.jpg"])
def test_letters_of_one_and_of_two_characters_name_one_image(name, written, there, tmp_path):
    """macOS writes ü as u and two dots, in archives too."""
    file = sources.write_image(tmp_path / "images" / unicodedata.normalize(there, "ü/é.jpg"))
    text = unicodedata.normalize(written, f"image,tags\n{name},x\n")
    found = gather([sources.write_text(tmp_path / "a.csv", text)])
    assert found.labels.paths == ([str(file)] if "deep" not in name else [str(tmp_path / text.split("\n")[1][:-2])])
    split = sources.write_text(tmp_path / "val.txt", unicodedata.normalize(written, "é\n"))
    assert listed(found.labels.paths, split) == (["val"], [])


@pytest.mark.parametrize("classes", [False, True], ids=["all", "wanted"])
def test_letters_of_one_and_of_two_characters_name_one_class(classes, tmp_path):
    one, two = (unicodedata.normalize(form, "강아지 é") for form in ("NFC", "NFD"))
    sources.write_images(tmp_path / "train", [f"{two}/a.jpg", "cat/b.jpg"])
    val = sources.write_text(tmp_path / "val.csv", f"image,{one},cat\nc.jpg,1,0\n")
    names = sources.write_text(tmp_path / "names.txt", f"cat\n{two}\n") if classes else None
    found = gather([str(tmp_path / "train")], [val], classes=names)
    assert_told(found, ["cat", one], {"a.jpg": [0, 1], "b.jpg": [1, 0], "c.jpg": [0, 1]})
    assert found.notes == []


def test_images_of_another_split_are_not_taken(tmp_path):
    """Splits whose images are numbered from 1 on each."""
    content = json.dumps({"images": [], "annotations": [{"imageId": k, "labelId": [str(k)]} for k in "12"]})
    validation = sources.write_text(tmp_path / "validation.json", content)
    sources.write_images(tmp_path / "train", ["1.jpg", "2.jpg"])
    assert [os.path.isfile(path) for path in gather([validation]).labels.paths] == [False, False]
    sources.write_images(tmp_path / "validation", ["2.jpg"])
    found = gather([sources.write_text(tmp_path / "train.json", content)], [validation])
    assert found.from_val.tolist() == [False, False, True, True]
    folders = [os.path.basename(os.path.dirname(path)) for path in found.labels.paths if os.path.isfile(path)]
    assert folders == ["train", "train", "validation"]
    latest = sources.write_text(tmp_path / "latest.json", content)
    assert all(os.path.isfile(path) for path in gather([latest]).labels.paths)


@pytest.mark.parametrize(
    "source, train, val",
    [
        ("instances_train2017.json", True, False),
        ("validation.json", False, True),
        ("trainval35k.json", True, True),
        ("latest.csv", True, True),
        ("valley.csv", True, True),
        ("training.txt", True, False),
        ("valid.csv", False, True),
        ("test-labels.csv", False, False),
    ],
)
def test_folders_of_splits_fit_sources_of_theirs(source, train, val):
    from multilabel_softmax_loss.data.finder import fits

    assert (fits("../train2014", source), fits("val", source), fits("images", source)) == (train, val, True)


@pytest.mark.parametrize("name", ["two\nlines", "", " ", "caf\udce9"], ids=ascii)
def test_a_class_whose_name_is_no_line_is_refused(name, tmp_path):
    from multilabel_softmax_loss.data.source import Gathering

    with pytest.raises(UsageError, match="expected a line of text"):
        Gathering(None, []).column_of(name)


def test_classes_that_sources_do_not_share_are_said(tmp_path):
    one = sources.write_text(tmp_path / "a.csv", "image,cat,dog\n1.jpg,1,0\n")
    two = sources.write_text(tmp_path / "b.csv", "image,dog,bird\n2.jpg,1,0\n")
    told = "\n".join(gather([one, two]).notes)
    assert "a.csv does not tell of 1 classes, which are absent there: bird." in told
    assert "b.csv does not tell of 1 classes, which are absent there: cat." in told
    found = gather([one, two], absent=UNKNOWN)
    assert found.labels.dense(0).tolist() == [1, 0, UNKNOWN]
    assert "unknown there: bird" in "\n".join(found.notes)
    wanted = sources.write_text(tmp_path / "wanted.txt", "cat\ndogg\n")
    assert "a.csv does not tell of 1 classes, which are absent there: dogg." in "".join(
        gather([one], classes=wanted).notes
    )
    values = sources.write_text(tmp_path / "v.txt", "a.jpg 0 1\nb.jpg 1 1\n")
    assert "not tell" not in "".join(gather([values], classes=wanted).notes)
    numbers = sources.write_text(tmp_path / "c.txt", "3.jpg 0 2\n4.jpg 1\n")
    with pytest.raises(UsageError, match="some sources number their classes and others name them"):
        gather([one, numbers])
    names = sources.write_text(tmp_path / "names.txt", "dog\nbird\ncat\n")
    assert gather([one, numbers], classes=names).labels.dense(1).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "text, message",
    [
        pytest.param("cat\n\ndog\nbird", "has an empty line, 2, before its last name", id="between"),
        pytest.param("\r\ncat\r\ndog\r\n", "has an empty line, 1, before its last name", id="first"),
        pytest.param("\n \n", r"names.txt \(--classes\) is empty", id="all"),
        pytest.param("cat\ndog\ncat\n", "names a class twice: 'cat'", id="twice"),
    ],
)
def test_a_list_of_classes_is_a_name_in_each_line(text, message, tmp_path):
    """Were an empty line skipped, the indices of a list would mean the classes one further down."""
    source = sources.write_text(tmp_path / "list.txt", "a.jpg 2\nb.jpg 0 1\n")
    with pytest.raises(UsageError, match=message):
        gather([source], classes=sources.write_text(tmp_path / "names.txt", text))
    with pytest.raises(UsageError, match=r"name.txt cannot be read: .* Did you mean '.*names.txt'"):
        gather([source], classes=str(tmp_path / "name.txt"))
    assert (
        gather([source], classes=sources.write_text(tmp_path / "names.txt", "c\rd\re\r\n\n")).labels.classes[2] == "e"
    )


def test_a_validation_source_adds_images_and_no_classes(tmp_path):
    train = sources.write_text(tmp_path / "a.csv", "image,tags\na.jpg,x y\n")
    val = sources.write_text(tmp_path / "b.csv", "image,tags\nb.jpg,y\n")
    assert gather([train], [val]).from_val.tolist() == [False, True]
    with pytest.raises(UsageError, match="--val has classes that the source has not: z"):
        gather([train], [sources.write_text(tmp_path / "c.csv", "image,tags\nc.jpg,z\n")])
    both = sources.write_text(tmp_path / "d.csv", "image,tags\na.jpg,x\nd.jpg,x\n")
    found = gather([train], [val, both])
    assert found.from_val.tolist() == [False, True, True]
    assert any(note.startswith("1 images of --val are in the source too, and train: ") for note in found.notes)
    listed = sources.write_text(tmp_path / "a.txt", "a.jpg 3\nb.jpg 0 1\n")
    assert gather([listed], [sources.write_text(tmp_path / "b.txt", "c.jpg 2\nd.jpg 0 1\n")]).labels.counts([2])[2]
    with pytest.raises(UsageError, match="--val has classes that the source has not: 4"):
        gather([listed], [sources.write_text(tmp_path / "c.txt", "c.jpg 4\nd.jpg 0 1\n")])


def test_many_rows_take_little_memory(tmp_path):
    """100,000 rows of labels stay below 100 MB beyond what the modules take."""
    rows = "".join(f"folder_{k % 100}/image_{k:07d}.jpg {k % 97} {k % 89 + 100}\n" for k in range(100_000))
    source = sources.write_text(tmp_path / "list.txt", rows)
    code = (
        "import resource, sys\nfrom multilabel_softmax_loss.data.source import gather\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak()\nfound = gather([sys.argv[1]])\n"
        "print(len(found.labels.paths), int((found.labels.values == 1).sum()), peak() - before)"
    )
    printed = subprocess.run([sys.executable, "-c", code, source], stdout=subprocess.PIPE, text=True, check=True).stdout
    images, labels, megabytes = map(int, printed.split())
    assert (images, labels) == (100_000, 200_000)
    assert megabytes < 100


def test_a_large_file_of_coco_is_recognised(tmp_path):
    """Where neither its first nor its last 64 kB has all of its keys."""
    images = [{"file_name": f"{k:012d}.jpg", "id": k} for k in range(3000)]
    objects = [{"image_id": k, "category_id": 5} for k in range(3000)]
    categories = [{"name": f"class {k}", "def": "of many words " * 9, "id": k} for k in range(1000)]
    text = coco_text(images=images, annotations=objects, categories=categories)
    found = gather([sources.write_text(tmp_path / "a.json", text)])
    assert (len(found.labels.paths), len(found.labels.classes)) == (3000, 1000)
    assert (found.labels.columns == 5).all()


def test_json_of_any_size_is_read_in_parts(tmp_path, monkeypatch):
    from multilabel_softmax_loss.data import text

    monkeypatch.setattr(text, "CHUNK", 3)
    content = {"a": [1, 25, {"b": ["]", "\\"]}], "c": 12345, "d": [], "e": "ü"}
    path = sources.write_text(tmp_path / "x.json", json.dumps(content))
    found = [("a", 1), ("a", 25), ("a", {"b": ["]", "\\"]}), ("c", 12345), ("e", "ü")]
    assert list(text.json_elements(path)) == found


def test_labels_know_their_positives():
    from multilabel_softmax_loss.data.source import Labels

    values = np.array([1, UNKNOWN, 0.5], np.float32)
    labels = Labels(["a", "b"], ["x", "y"], np.array([0, 2, 3]), np.array([0, 1, 1]), values, 0.0)
    assert labels.counts([0, 1]).tolist() == [1, 1]
    assert labels.counts([1]).tolist() == [0, 1]
    assert labels.has_unknown
