"""Object detection: sources, boxes under every transform, losses, metrics, families."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import detectors
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from sweeper.core.errors import InputError
from sweeper.core.trial import TrialSpec
from sweeper.data.checks import Scan
from sweeper.data.clean import clean
from sweeper.data.prepare import prepare
from sweeper.models import detection
from sweeper.models.load import load
from sweeper.spec.study import DataSpec, ModelSpec, TaskSpec
from sweeper.store.tables import write_predictions
from sweeper.tasks.base import Batch
from sweeper.tasks.boxes import follow, target_boxes, to_centres, to_corners
from sweeper.tasks.metrics import detection_scores
from sweeper.tasks.registry import make_task, needs
from sweeper.train.augment import moved
from sweeper.train.evaluate import evaluate, predict
from sweeper.train.loop import TrainData, TrainOptions, train

CLASSES = ("cell", "plate")


def picture(width, height, boxes):
    """A dark image with a bright rectangle for each box, PNG."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for label, x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1, label] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def scenes(count, seed=0):
    """Sizes and boxes (class, corners) of some images, the first one empty."""
    rng = np.random.default_rng(seed)
    found = [(48, 32, [])]
    for _ in range(count - 1):
        width, height = rng.integers(32, 65, 2).tolist()
        boxes = []
        for _ in range(rng.integers(1, 4)):
            w, h = rng.integers(8, 20, 2)
            x, y = rng.integers(0, width - w), rng.integers(0, height - h)
            boxes.append((int(rng.integers(2)), int(x), int(y), int(x + w), int(y + h)))
        found.append((width, height, boxes))
    return found


def write_voc(root, images):
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    names = [f"image{i:02d}" for i in range(len(images))]
    for name, (width, height, boxes) in zip(names, images, strict=True):
        (root / f"JPEGImages/{name}.png").write_bytes(picture(width, height, boxes))
        objects = "".join(
            f"<object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for label, x0, y0, x1, y1 in boxes
        )
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    for split, part in (("train", names[:-4]), ("val", names[-4:-2]), ("test", names[-2:])):
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(part) + "\n")
    return root


def write_coco(folder, images, stem="instances_train"):
    home = folder / stem.removeprefix("instances_")
    home.mkdir(parents=True)
    entries, annotations = [], []
    for at, (width, height, boxes) in enumerate(images):
        (home / f"{at}.png").write_bytes(picture(width, height, boxes))
        entries.append({"id": at, "file_name": f"{at}.png", "width": width, "height": height})
        for label, x0, y0, x1, y1 in boxes:
            box = [x0, y0, x1 - x0, y1 - y0]
            annotations.append({"id": len(annotations) + 1, "image_id": at, "category_id": label + 7, "bbox": box})
    categories = [{"id": index + 7, "name": name} for index, name in enumerate(CLASSES)]
    path = folder / f"{stem}.json"
    path.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": categories}))
    return path


def prepared(folder, data, **task):
    spec = TaskSpec(type="object-detection", data=DataSpec(**data), **task)
    return spec, prepare(spec, seed=0, folder=folder / "prepared", **needs(spec))


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return write_voc(tmp_path_factory.mktemp("voc") / "cells", scenes(12))


# -- sources ---------------------------------------------------------------------------------------------------


def test_a_voc_folder_gives_its_official_splits(voc, tmp_path):
    _, data = prepared(tmp_path, {"train": str(voc), "validation": str(voc), "test": str(voc)})
    assert data.num_examples == {"train": 8, "validation": 2, "test": 2}
    assert data.classes == CLASSES
    _, by_list = prepared(
        tmp_path / "lists",
        {
            split: str(voc / f"ImageSets/Main/{name}.txt")
            for split, name in (("train", "train"), ("validation", "val"), ("test", "test"))
        },
    )
    assert by_list.fingerprint == data.fingerprint
    boxes = data.train().column("label").to_pylist()
    assert boxes[0] == []  # an image without objects stays
    assert [(b["label"], *b["box"]) for b in boxes[1]] == [tuple(b) for b in scenes(12)[1][2]]


def test_train_takes_what_no_other_split_claims(voc, tmp_path):
    _, data = prepared(tmp_path, {"train": str(voc), "validation": 0.2, "test": str(voc)})
    assert data.num_examples == {"train": 8, "validation": 2, "test": 2}


def test_coco_and_voc_give_the_same_boxes(voc, tmp_path):
    path = write_coco(tmp_path, scenes(12))
    _, coco = prepared(tmp_path, {"train": str(path), "validation": 0.2, "test": 0.2})
    _, same = prepared(tmp_path / "b", {"train": str(voc), "validation": 0.2, "test": 0.2})
    of_voc = dict(zip(same.train()["image"].to_pylist(), same.train()["label"].to_pylist(), strict=True))
    for image, label in zip(coco.train()["image"].to_pylist(), coco.train()["label"].to_pylist(), strict=True):
        assert of_voc.get(image, label) == label


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "Annotations/image01.xml").write_text("<annotation><object/></annotation>"), "bndbox"),
        (lambda root: (root / "Annotations/image01.xml").write_text("<!DOCTYPE a [<!ENTITY b 'c'>]><a/>"), "entities"),
        (lambda root: (root / "JPEGImages/image01.png").unlink(), "JPEGImages"),
        (lambda root: (root / "JPEGImages/image01.png").write_bytes(b"no image"), "readable image"),
        (lambda root: (root / "ImageSets/Main/test.txt").unlink(), "list of test images"),
    ],
)
def test_a_damaged_voc_folder_is_one_line(tmp_path, damage, message):
    root = write_voc(tmp_path / "voc", scenes(8))
    damage(root)
    with pytest.raises(InputError, match=message):
        prepared(tmp_path, {"train": str(root), "validation": str(root), "test": str(root)})
    assert not (tmp_path / "prepared").exists()


def test_boxes_are_clipped_and_those_without_area_counted(tmp_path):
    path = write_coco(tmp_path, scenes(6))
    data = json.loads(path.read_text())
    data["annotations"] += [
        {"id": 900, "image_id": 0, "category_id": 7, "bbox": [-5, -5, 15, 15]},
        {"id": 901, "image_id": 0, "category_id": 7, "bbox": [10, 10, 0, 5]},
    ]
    path.write_text(json.dumps(data))
    _, found = prepared(tmp_path, {"train": str(path), "validation": 0.2, "test": 0.2})
    labels = [
        b for t in (found.train(), found.validation(), found.open_test()) for r in t["label"].to_pylist() for b in r
    ]
    assert [0.0, 0.0, 10.0, 10.0] in [b["box"] for b in labels]
    assert found.notes == ("train: 1 boxes without area inside their image were left out",)


def test_check_and_fix_know_detection_data(voc, tmp_path):
    root = write_voc(tmp_path / "voc", [*scenes(11), scenes(11)[2]])  # the last of test stands in train
    lists = {
        s: str(root / f"ImageSets/Main/{n}.txt")
        for s, n in (("train", "train"), ("validation", "val"), ("test", "test"))
    }
    spec, data = prepared(tmp_path, lists)
    scan = Scan(data)
    report = scan.report()
    assert report.leaks["train-test"] == 1
    assert report.classes == {
        name: sum(b[0] == i for _, _, boxes in [*scenes(11), scenes(11)[2]] for b in boxes)
        for i, name in enumerate(CLASSES)
    }
    assert "train: 1 images without any box" in report.notes
    clean(spec, scan)
    kept = (root / "ImageSets/Main/train.cleaned.txt").read_text().split()
    assert "image02" not in kept
    assert len(kept) == 7


# -- geometry --------------------------------------------------------------------------------------------------

edges = st.integers(8, 40)


@settings(max_examples=40, deadline=None)
@given(width=edges, height=edges, padded=st.booleans(), data=st.data())
def test_boxes_survive_resizing_and_padding(width, height, padded, data):
    """The rectangle found in the encoded pixels is where the target, brought to the input, says."""
    x0, y0 = data.draw(st.integers(0, width - 4)), data.draw(st.integers(0, height - 4))
    x1, y1 = data.draw(st.integers(x0 + 4, width)), data.draw(st.integers(y0 + 4, height))
    task = make_task(TaskSpec(type="object-detection", data=DataSpec(train="x"), image_size=64), CLASSES)
    label = [[{"label": 0, "box": [x0, y0, x1, y1], "ignored": False}]]
    table = pa.table({"example_id": ["a"], "image": [picture(width, height, [(0, x0, y0, x1, y1)])], "label": label})
    options = {"do_normalize": False, "resample": Image.Resampling.NEAREST}
    processor = hf.DetrImageProcessor(**options) if padded else hf.RTDetrImageProcessor(**options)
    examples = task.open(task.encode(table, processor), processor)
    batch = examples.batch(np.array([0]))
    bright = batch.inputs["pixel_values"][0, 0] > 0.5
    rows, columns = torch.nonzero(bright.any(1))[:, 0], torch.nonzero(bright.any(0))[:, 0]
    seen = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    box = batch.targets[0, 0]
    shares = to_centres(box[2:6], box[6:8])
    expected = to_corners(shares, torch.tensor([64.0, 64.0]))
    assert torch.allclose(seen.float(), expected, atol=64 / min(width, height) / 2 + 1.01)
    if padded:
        mask = batch.inputs["pixel_mask"][0]
        assert mask.any(1).sum() == max(1, round(64 * height / max(width, height)))
        assert mask.any(0).sum() == max(1, round(64 * width / max(width, height)))


@settings(max_examples=60, deadline=None)
@given(
    x0=st.integers(0, 20), y0=st.integers(0, 20), w=st.integers(4, 11), h=st.integers(4, 11),
    down=st.integers(-12, 12), right=st.integers(-12, 12), flip=st.booleans(),
)  # fmt: skip
def test_boxes_follow_shifts_and_flips(x0, y0, w, h, down, right, flip):
    """Moving the image and moving the box agree, to the pixel; a box that has mostly left is gone."""
    frame = np.array([[64.0, 64.0]])  # the input has 32 pixels a side: two original pixels each
    box = [2 * x0, 2 * y0, 2 * (x0 + w), 2 * (y0 + h)]
    targets = torch.from_numpy(target_boxes([[{"label": 1, "box": box, "ignored": False}]], frame))
    pixels = torch.zeros(1, 1, 32, 32)
    pixels[0, 0, y0 : y0 + h, x0 : x0 + w] = 1
    pixels = torch.nn.functional.pad(pixels, (40,) * 4)  # no edge is bright, so nothing is smeared
    steps, flips = np.array([[down, right]]), np.array([flip])
    shifted = moved(pixels, steps, flips)[..., 40:-40, 40:-40]
    batch = Batch(
        inputs={"pixel_values": pixels[..., 40:-40, 40:-40], "labels": targets}, targets=targets, follow=follow
    )
    after = follow(batch, steps, flips)
    found = after.targets[0, 0]
    visible = shifted.sum() / (w * h)
    assert torch.equal(after.inputs["labels"], after.targets)
    if visible < 0.25:
        assert found[0] == -1
        return
    assert found[0] == 1
    rows, columns = torch.nonzero(shifted[0, 0].any(1))[:, 0], torch.nonzero(shifted[0, 0].any(0))[:, 0]
    seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * 2.0
    assert torch.allclose(found[2:6], seen)


# -- metrics ---------------------------------------------------------------------------------------------------


def as_array(rows, width):
    most = max(1, max(len(r) for r in rows))
    found = np.full((len(rows), most, width), -1.0, dtype=np.float32)
    for i, row in enumerate(rows):
        for j, box in enumerate(row):
            found[i, j, : len(box)] = box
    return found


def test_perfect_detections_score_one_and_none_zero():
    targets = as_array([[(0, 1, 10, 10, 30, 30), (1, 1, 50, 50, 90, 95)], [(1, 1, 5, 5, 60, 60)], []], 8)
    same = targets[:, :, :6].copy()
    same[same[:, :, 0] >= 0, 1] = 0.9
    scores = detection_scores(targets, same, 2)
    assert scores["map"] == pytest.approx(1)
    assert scores["map_50"] == pytest.approx(1)
    assert scores["mar_100"] == pytest.approx(1)
    nothing = np.full((3, 1, 6), -1, dtype=np.float32)
    assert set(detection_scores(targets, nothing, 2).values()) == {0.0}
    assert set(detection_scores(np.full((3, 1, 8), -1.0), same, 2).values()) == {0.0}


def test_values_worked_out_by_hand():
    # One class, two boxes. IoU of the first detection is .8 (hit up to .8: 7 of 10 thresholds), the second misses, the
    # third is exact: precision at recall .5 is 1, at recall 1 it is 2/3.
    targets = as_array([[(0, 1, 0, 0, 100, 100), (0, 1, 200, 200, 300, 300)]], 8)
    found = as_array([[(0, 0.9, 0, 0, 100, 80), (0, 0.8, 400, 0, 420, 20), (0, 0.7, 200, 200, 300, 300)]], 6)
    scores = detection_scores(targets, found, 1)
    below = (51 * 1 + 50 * 2 / 3) / 101  # 101 recall points: 0 to .50, and .51 to 1
    above = 51 * (1 / 3) / 101  # only the exact one hits, as the third
    assert scores["map_50"] == pytest.approx(below, abs=1e-4)
    assert scores["map"] == pytest.approx((7 * below + 3 * above) / 10, abs=1e-4)
    assert scores["mar_100"] == pytest.approx((7 * 1 + 3 * 0.5) / 10, abs=1e-4)


def test_a_detection_on_an_ignored_box_costs_nothing():
    targets = as_array([[(0, 1, 0, 0, 50, 50), (0, 0, 100, 100, 200, 200)]], 8)
    found = as_array([[(0, 0.9, 100, 100, 200, 200), (0, 0.8, 0, 0, 50, 50)]], 6)
    assert detection_scores(targets, found, 1)["map"] == pytest.approx(1)


# -- models ----------------------------------------------------------------------------------------------------

FAMILIES = ("yolos", "detr", "rt_detr", "rt_detr_v2", "d_fine")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Save a tiny detector of each family, with other classes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("detectors")
    for name, (model, processor) in detectors().items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def splits(voc, tmp_path_factory):
    _, data = prepared(tmp_path_factory.mktemp("data"), {"train": str(voc), "validation": str(voc), "test": str(voc)})
    return data


def ready(checkpoints, splits, name, side=64):
    task = make_task(TaskSpec(type="object-detection", data=DataSpec(train="x"), image_size=side), splits.facts)
    model = load(ModelSpec(name=name, checkpoint=str(checkpoints / name)), task.head)
    tables = {"train": splits.train(), "validation": splits.validation()}
    examples = {s: task.open(task.encode(t, model.preprocessor), model.preprocessor) for s, t in tables.items()}
    return task, model, TrainData(**examples, key=name)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_and_an_image_counts_alone(checkpoints, splits, tmp_path, name):
    task, model, data = ready(checkpoints, splits, name)
    layout = model.layout
    assert sum(map(len, layout.groups)) == len(list(model.module.named_parameters()))
    assert detection.class_layers(model.module) <= set(layout.groups[-1])
    assert not any(key.startswith("bbox") or ".bbox_embed" in key for key in model.fresh)
    module = model.instantiate(1, {"dropout": 0.1})
    assert model.dropouts(module)["dropout"] == [0.1]
    module.eval()
    rows = np.arange(4)  # the first image has no object
    batch = data.train.batch(rows)
    with torch.no_grad():
        together = task.loss(module(**batch.inputs), batch.targets)
        alone = [task.loss(module(**(b := data.train.batch(rows[[i]])).inputs), b.targets) for i in rows]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-4)
    if name.startswith("rt_detr"):  # trains as D-FINE does
        return
    params = {"learning_rate": 1e-3, "batch_size": 4, "horizontal_flip": 0.5, "random_crop": 0.1}
    trial = TrialSpec(trial_id="t", number=0, model=name, params=params, seed=0, max_epochs=1)
    run = train(trial, task, model, data, TrainOptions())
    (measured,) = list(run)
    assert np.isfinite(measured.train_loss)
    (tmp_path / "best").mkdir()
    run.save_best(tmp_path / "best")
    found = predict(model, tmp_path / "best", task, data.validation, TrainOptions())
    assert found.scores["map"] == pytest.approx(measured.metrics["map"], abs=1e-6)
    part = tmp_path / "part.parquet"
    write_predictions(
        part, model=name, config="tuned", seed=1, example_ids=found.example_ids, targets=found.targets,
        predictions=found.decisions, probabilities=found.probabilities,
    )  # fmt: skip
    row = pq.read_table(part).to_pylist()[0]
    assert len(row["probabilities"]) == 100
    assert set(row["target"][0]) == {"label", "score", "box"}


def test_the_loss_of_one_image_is_transformers_own(checkpoints, splits):
    task, model, data = ready(checkpoints, splits, "detr")
    batch = data.train.batch(np.array([1]))
    boxes = batch.targets[0][batch.targets[0, :, 0] >= 0]
    labels = [{"class_labels": boxes[:, 0].long(), "boxes": to_centres(boxes[:, 2:6], boxes[:, 6:8])}]
    original = hf.AutoModelForObjectDetection.from_pretrained(
        checkpoints / "detr", num_labels=2, ignore_mismatched_sizes=True
    ).eval()
    original.load_state_dict(model.module.state_dict())
    inputs = {key: batch.inputs[key] for key in ("pixel_values", "pixel_mask")}
    with torch.no_grad():
        expected = original(**inputs, labels=labels).loss
        assert torch.allclose(task.loss(model.module(**batch.inputs), batch.targets)[0], expected)


def test_a_detector_learns_to_find_rectangles(checkpoints, tmp_path):
    """From random weights the loss goes down by a fifth in two seconds."""
    path = write_coco(tmp_path, [scene for scene in scenes(40, seed=1) if scene[2]])
    _, data = prepared(tmp_path, {"train": str(path), "validation": 0.1, "test": 0.1})
    task, model, splits = ready(checkpoints, data, "yolos")
    trial = TrialSpec(
        trial_id="t", number=0, model="yolos", params={"learning_rate": 5e-3, "batch_size": 8}, seed=0, max_epochs=6
    )
    measurements = list(train(trial, task, model, splits, TrainOptions()))
    assert measurements[-1].train_loss < 0.8 * measurements[0].train_loss


def test_not_finite_boxes_are_a_diverged_loss(checkpoints, splits):
    task, model, data = ready(checkpoints, splits, "yolos", side=64)
    module = model.instantiate(0, {})
    with torch.no_grad():
        module.bbox_predictor.layers[-1].weight.fill_(float("nan"))
    loss, _ = evaluate(module, task, data.validation, TrainOptions())
    assert not np.isfinite(loss)


@pytest.mark.parametrize("name", ["detr", "d_fine"])
def test_the_exported_processor_brings_images_to_the_studys_size(checkpoints, splits, tmp_path, name):
    task, model, _ = ready(checkpoints, splits, name, side=64)
    model.preprocessor.save_pretrained(tmp_path)
    saved = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    image = Image.open(io.BytesIO(splits.train().column("image")[1].as_py())).convert("RGB")
    made = saved(image, return_tensors="pt")["pixel_values"]
    own = task.open(task.encode(splits.train().slice(1, 1), model.preprocessor), model.preprocessor)
    assert made.shape == (1, 3, 64, 64)
    inside = (
        own.batch(np.array([0])).inputs.get("pixel_mask", torch.ones(1, 64, 64)).bool()[:, None].expand(1, 3, -1, -1)
    )
    assert (made - own.batch(np.array([0])).inputs["pixel_values"])[inside].abs().mean() < 0.1
