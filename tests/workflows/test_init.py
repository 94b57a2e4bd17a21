from __future__ import annotations

import json

import pytest
from PIL import Image

import sweeper
from sweeper.cli import main
from sweeper.core.errors import InputError
from sweeper.data.prepare import prepare
from sweeper.tasks.registry import needs
from sweeper.workflows.init import propose

LISTS = {"train": range(6), "val": range(6, 8), "test": range(8, 10)}
OBJECT = "<object><name>{}</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"


def voc(root, lists=LISTS, objects=("cat", "cat", "dog")):
    """Write a Pascal VOC folder of ten images."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for at in range(10):
        Image.new("RGB", (12, 12), (20 * at, 0, 0)).save(root / "JPEGImages" / f"i{at}.png")
        inside = "".join(OBJECT.format(name) for name in objects)
        (root / "Annotations" / f"i{at}.xml").write_text(f"<annotation>{inside}</annotation>")
    for name, rows in lists.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"i{at}\n" for at in rows))
    return root


def coco(file, first, count=4):
    """Write a COCO file of some images, which lie beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for at in range(first, first + count):
        Image.new("RGB", (12, 12), (10 * at, 9, 0)).save(file.parent / f"{at}.png")
    ids = range(first, first + count)
    found = {
        "categories": [{"id": 1, "name": "cell"}],
        "images": [{"id": at, "file_name": f"{at}.png"} for at in ids],
        "annotations": [{"id": at, "image_id": at, "category_id": 1, "bbox": [1, 1, 5, 5]} for at in ids],
    }
    file.write_text(json.dumps(found))


def study(tmp_path, data):
    """Return the proposed text, and the counts of the splits that it leads to."""
    text = propose(data, ["a/detector", "b/detector"], base=tmp_path)
    (tmp_path / "study.yaml").write_text(text)
    spec = sweeper.load_study(tmp_path / "study.yaml")
    found = prepare(spec.task, seed=0, folder=tmp_path / "prepared", **needs(spec.task))
    return text, {"train": len(found.train()), "validation": len(found.validation())}


def test_a_pascal_voc_folder_is_split_by_its_own_lists(tmp_path):
    text, rows = study(tmp_path, voc(tmp_path / "cells"))
    assert "# 6 images to train on, 18 objects of 2 classes, largest / smallest class 2.0." in text
    assert "type: object-detection" in text
    assert text.count(": cells\n") == 4, "its name, and one folder for three splits"
    assert rows == {"train": 6, "validation": 2}


@pytest.mark.parametrize("lists", [{}, {"val": range(6, 8)}, {"train": range(8), "test": range(8, 10)}])
def test_where_lists_are_missing_shares_stand_for_them(tmp_path, lists):
    text, rows = study(tmp_path, voc(tmp_path / "cells", lists))
    assert "validation: 0.15" in text
    assert ("test: cells" in text) == ("test" in lists)
    assert rows["train"] >= 6


def test_coco_files_and_folders_find_their_other_splits(tmp_path):
    for at, name in enumerate(("train", "valid", "test")):
        coco(tmp_path / "scenes" / name / "_annotations.coco.json", 4 * at)
    text, rows = study(tmp_path, tmp_path / "scenes")
    assert "name: scenes\n" in text
    assert "train: scenes/train\n    validation: scenes/valid\n    test: scenes/test\n" in text
    assert "4 objects of one class" in text
    assert rows == {"train": 4, "validation": 4}
    for name, first in (("instances_train.json", 0), ("instances_val.json", 4)):
        coco(tmp_path / "flat" / name, first)
    text = propose(tmp_path / "flat" / "instances_train.json", ["m"], base=tmp_path)
    assert "validation: flat/instances_val.json\n    test: 0.2" in text


def test_a_folder_of_splits_is_no_folder_of_classes(tmp_path):
    for split, shade in (("train", 0), ("val", 99)):
        for at, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (shade, at, 0)).save(folder / "one.png")
    text = propose(tmp_path / "pets", ["m"], base=tmp_path)
    assert "2 classes" in text
    assert "train: pets/train\n    validation: pets/val\n    test: 0.2" in text
    assert propose(tmp_path / "pets" / "train", ["m"], base=tmp_path) == text


def test_boxes_are_needed(tmp_path):
    with pytest.raises(InputError, match="at least one labelled box"):
        propose(voc(tmp_path / "empty", objects=()), ["m"], base=tmp_path)


def test_a_damaged_coco_file_is_named_not_taken_for_a_folder_of_classes(tmp_path):
    coco(tmp_path / "train" / "_annotations.coco.json", 0)
    file = tmp_path / "train" / "_annotations.coco.json"
    file.write_text(file.read_text()[:-9])
    with pytest.raises(InputError, match=r"_annotations\.coco\.json: must be JSON"):
        propose(tmp_path / "train", ["m"], base=tmp_path)


def test_a_study_file_goes_into_a_folder_that_is_there(tmp_path, capsys):
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\n")
    with pytest.raises(SystemExit) as ended:
        main(["init", str(tmp_path / "train.csv"), "m", "-o", str(tmp_path / "none" / "study.yaml")])
    assert ended.value.code == 2
    assert "its folder must exist" in capsys.readouterr().err
