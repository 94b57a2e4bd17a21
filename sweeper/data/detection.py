"""Reading labelled boxes: Pascal VOC folders and lists, COCO files, and tables with a column of objects.

Whatever the source, a raw table has ``example_id``, ``image`` and ``label``: a list of `BOX` an image, possibly empty.
Boxes are corners in pixels, clipped to the image; what has no area left is left out and counted.
"""

from __future__ import annotations

import io
import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from sweeper.core.errors import InputError, Problem

BOX = pa.struct([("label", pa.string()), ("box", pa.list_(pa.float64(), 4)), ("ignored", pa.bool_())])
"""One object: its class, the corners x0, y0, x1, y1 in pixels, and whether neither loss nor metric count it."""

LIST_FOLDER = ("ImageSets", "Main")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_LISTS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
_REPORTED = 5  # problems listed one by one


@dataclass(frozen=True)
class _Found:
    """One image before its size is known: name, encoded bytes, and objects as label, corners, ignored."""

    name: str
    cell: bytes
    objects: Sequence[tuple[str, Sequence[float], bool]]


def is_detection_source(path: Path) -> bool:
    """Whether a path is a Pascal VOC folder or list, a COCO file, or a folder with one."""
    if path.is_dir():
        return (path / "Annotations").is_dir() or _coco_file(path) is not None
    return path.is_file() and (path.suffix.lower() == ".txt" or (path.suffix.lower() == ".json" and _is_coco(path)))


def read_detection(path: Path, place: str, *, split: str, claimed: Sequence[str], images: Path | None) -> pa.Table:
    """Read a Pascal VOC folder or list, or a COCO file or folder.

    Parameters
    ----------
    split:
        ``train``, ``validation`` or ``test``: of a VOC folder the official list of that name is taken.
    claimed:
        Other splits that name the same folder: train takes all images that are on none of their lists.
    images:
        Folder of a COCO file's images; None: found beside it.

    Raises
    ------
    InputError
        For what is missing or cannot be read, in one line each.
    """
    if path.is_dir() and (path / "Annotations").is_dir():
        found = _read_voc(path, _voc_names(path, place, split, claimed), place)
    elif path.suffix.lower() == ".txt":
        root = path.resolve().parent.parent.parent
        if not (root / "Annotations").is_dir():
            rule = "a list must lie in ImageSets/Main of a Pascal VOC folder"
            raise InputError(Problem(place, rule, path.parent.name, "move it there, or name the folder"))
        found = _read_voc(root, _listed(path, place), place)
    else:
        file = path if path.is_file() else _coco_file(path)
        assert file is not None, "is_detection_source said so"
        found = _read_coco(file, place, images)
    return _table(found, place)


def table_of_objects(table: pa.Table, cells: Sequence[bytes], column: str, place: str) -> pa.Table:
    """Return a table's images with their objects: per image a struct of lists, or a list of structs.

    Boxes stand under ``bbox`` as COCO writes them (x, y, width, height), classes under ``category``, ``categories``,
    ``category_id``, ``label`` or ``labels``.
    """
    ids = table.column("example_id").to_pylist()
    found = []
    for name, cell, value in zip(ids, cells, table.column(column).to_pylist(), strict=True):
        entries = value if isinstance(value, list) else _rows(value or {})
        found.append(_Found(name, cell, [_entry(entry, f"{place} {name}") for entry in entries]))
    return _table(found, place)


def _rows(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    lists = {key: values for key, values in columns.items() if isinstance(values, list)}
    count = len(lists.get("bbox", []))
    return [{key: values[at] for key, values in lists.items() if len(values) == count} for at in range(count)]


def _entry(entry: Mapping[str, Any], place: str) -> tuple[str, Sequence[float], bool]:
    names = ("category", "categories", "category_id", "label", "labels")
    label = next((entry[name] for name in names if entry.get(name) is not None), None)
    if label is None:
        remedy = "give each object a `category`"
        raise InputError(Problem(place, "an object must have a class", ", ".join(entry) or "nothing", remedy))
    return str(label), _corners(entry.get("bbox"), place), bool(entry.get("iscrowd"))


def _corners(box: Any, place: str) -> Sequence[float]:
    """Return corners from x, y, width, height."""
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in box):
        raise InputError(
            Problem(place, "bbox must be four finite numbers", str(box)[:60], "write [x, y, width, height]")
        )
    x, y, width, height = (float(value) for value in box)
    return x, y, x + width, y + height


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _table(found: Sequence[_Found], place: str) -> pa.Table:
    """Clip all boxes to their images and put the table together."""
    labels, dropped, problems = [], 0, []
    for item in found:
        try:
            with Image.open(io.BytesIO(item.cell)) as image:
                width, height = image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split())[:80]
            problems.append(Problem(item.name, "must be a readable image", reason, "replace or remove it"))
            continue
        kept = []
        for label, (x0, y0, x1, y1), ignored in item.objects:
            box = [
                min(max(x0, 0.0), width),
                min(max(y0, 0.0), height),
                min(max(x1, 0.0), width),
                min(max(y1, 0.0), height),
            ]
            if box[2] > box[0] and box[3] > box[1]:
                kept.append({"label": label, "box": box, "ignored": ignored})
            else:
                dropped += 1
        labels.append(kept)
    if problems:
        rest = len(problems) - _REPORTED
        more = [Problem(f"{rest} more images", "must be readable", "", "replace or remove them")] if rest > 0 else []
        raise InputError([*problems[:_REPORTED], *more])
    if not found:
        raise InputError(Problem(place, "must hold at least one image", "none", "give a source with images"))
    table = pa.table(
        {
            "example_id": pa.array([item.name for item in found], pa.string()),
            "image": pa.array([item.cell for item in found], pa.binary()),
            "label": pa.array(labels, pa.list_(BOX)),
        }
    )
    return table.replace_schema_metadata({"missing": "0", "boxes_without_area": str(dropped)})


# -- Pascal VOC ------------------------------------------------------------------------------------------------


def _voc_names(root: Path, place: str, split: str, claimed: Sequence[str]) -> list[str]:
    """Return the names of a split: the official list, or all that no other split has claimed."""
    if split == "train" and "validation" not in claimed:
        taken = {name for other in claimed for name in _official(root, place, other)}
        return [path.stem for path in sorted((root / "Annotations").glob("*.xml")) if path.stem not in taken]
    return _official(root, place, split)


def has_official_list(root: Path, split: str) -> bool:
    """Whether a Pascal VOC folder has a list of a split's images."""
    return _official_list(root, split) is not None


def _official_list(root: Path, split: str) -> Path | None:
    files = [root.joinpath(*LIST_FOLDER, f"{name}.txt") for name in _LISTS[split]]
    return next((file for file in files if file.is_file()), None)


def _official(root: Path, place: str, split: str) -> list[str]:
    found = _official_list(root, split)
    if found is not None:
        return _listed(found, place)
    rule = f"the folder must have its list of {split} images"
    raise InputError(Problem(place, rule, f"no ImageSets/Main/{_LISTS[split][0]}.txt", "add it, or give a share"))


def _listed(path: Path, place: str) -> list[str]:
    """Return the first word of each line: lists of one class carry a flag behind it."""
    try:
        names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise InputError(Problem(place, "a list must be text", path.name, "save it as UTF-8")) from None
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(Problem(place, "a list must name each image once", twice, "remove the repetition"))
    return names


def _read_voc(root: Path, names: Sequence[str], place: str) -> list[_Found]:
    home = root.resolve()
    images = {path.stem: path for path in sorted((root / "JPEGImages").glob("*")) if path.suffix.lower() in _SUFFIXES}
    problems, found = [], []
    for name in names:
        annotation, image = root / "Annotations" / f"{name}.xml", images.get(name)
        if "/" in name or not annotation.is_file() or image is None:
            what = "Annotations" if image is not None else "JPEGImages"
            problems.append(Problem(place, f"every listed image must stand in {what}", name, "add it or unlist it"))
        elif not (annotation.resolve().is_relative_to(home) and image.resolve().is_relative_to(home)):
            problems.append(Problem(place, "must lie in the folder", name, "copy the file: it is a link outside"))
        else:
            try:
                found.append(_Found(name, image.read_bytes(), _voc_objects(annotation)))
            except (ValueError, ElementTree.ParseError) as error:
                reason = " ".join(str(error).split())[:80]
                problems.append(Problem(str(annotation), "must be a Pascal VOC annotation", reason, "correct the file"))
    if problems:
        raise InputError(problems[:_REPORTED])
    return found


def _voc_objects(path: Path) -> list[tuple[str, Sequence[float], bool]]:
    """Read the objects of an annotation. VOC counts pixels from 1 and includes both ends."""
    text = path.read_text(encoding="utf-8")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("a document type, which could hold entities that expand without end")
    objects: list[tuple[str, Sequence[float], bool]] = []
    for item in ElementTree.fromstring(text).iter("object"):  # noqa: S314 - entities are refused above
        label = (item.findtext("name") or "").strip()
        bounds = item.find("bndbox")
        if not label or bounds is None:
            raise ValueError("an object without name or bndbox")
        x0, y0, x1, y1 = (float(bounds.findtext(side) or "nan") for side in ("xmin", "ymin", "xmax", "ymax"))
        if not all(math.isfinite(value) for value in (x0, y0, x1, y1)):
            raise ValueError("a bndbox without xmin, ymin, xmax and ymax")
        objects.append((label, (x0 - 1, y0 - 1, x1, y1), (item.findtext("difficult") or "0").strip() == "1"))
    return objects


# -- COCO ------------------------------------------------------------------------------------------------------


def _coco_file(folder: Path) -> Path | None:
    """Return the COCO file of a folder: ``_annotations.coco.json``, or its only json file."""
    usual = folder / "_annotations.coco.json"
    if usual.is_file():  # its name says what it is to be, whatever became of it
        return usual
    files = sorted(folder.glob("*.json"))
    return files[0] if len(files) == 1 and _is_coco(files[0]) else None


def _is_coco(path: Path) -> bool:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return False
    return isinstance(data, dict) and "images" in data and "annotations" in data


def _read_coco(path: Path, place: str, folder: Path | None) -> list[_Found]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(Problem(f"{place} {path.name}", "must be JSON", str(error)[:100], "mend the file")) from None
    try:
        names = {entry["id"]: str(entry["name"]) for entry in data["categories"]}
        files = {entry["id"]: str(entry["file_name"]) for entry in data["images"]}
        objects: dict[Any, list[tuple[str, Sequence[float], bool]]] = {key: [] for key in files}
        for entry in data["annotations"]:
            corners = _corners(entry["bbox"], f"{place} annotation {entry.get('id')}")
            objects[entry["image_id"]].append((names[entry["category_id"]], corners, bool(entry.get("iscrowd"))))
    except (KeyError, TypeError) as error:
        rule = "images, annotations and categories must name each other"
        raise InputError(Problem(place, rule, f"{type(error).__name__} {error}"[:80], "correct the file")) from None
    if len(set(files.values())) < len(files):
        raise InputError(Problem(place, "every image must be listed once", path.name, "remove the repetition"))
    homes = [folder] if folder is not None else _image_folders(path)
    problems, found = [], []
    for key, name in files.items():
        image = _image_file(homes, name)
        if image is None:
            remedy = "name the folder of the images under task.data.images"
            problems.append(Problem(place, "every image must lie beside the file", name, remedy))
        else:
            found.append(_Found(name, image.read_bytes(), objects[key]))
    if problems:
        raise InputError(problems[:_REPORTED])
    return found


def _image_folders(path: Path) -> list[Path]:
    """Return where a COCO file's images usually lie: beside it, in ``images``, or in the folder named like it."""
    bases = (path.parent, path.parent.parent)
    own = path.stem.removeprefix("instances_")
    return [path.parent, *(base / name for name in (own, "images", f"images/{own}") for base in bases)]


def _image_file(homes: Sequence[Path], name: str) -> Path | None:
    for home in homes:
        path = (home / name).resolve()
        if path.is_file() and path.is_relative_to(home.resolve()):
            return path
    return None
