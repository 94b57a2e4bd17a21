"""Metrics of others: the test cases of sacrebleu and torchmetrics, and pycocotools itself."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from sweeper.tasks.metrics import detection_scores, written_scores

# Four images of COCO with detections, and what pycocotools makes of them, as torchmetrics tests its own metric
# (tests/unittests/detection/test_map.py): class, score (targets have none), x0, y0, x1, y1.
FOUND = [
    [(4, 0.236, 258.15, 41.29, 606.41, 285.07)],
    [(3, 0.318, 61.00, 22.75, 565.00, 632.42), (2, 0.726, 12.66, 3.32, 281.26, 275.23)],
    [
        (4, 0.546, 87.87, 276.25, 384.29, 379.43),
        (1, 0.300, 0.00, 3.66, 142.15, 316.06),
        (0, 0.407, 296.55, 93.96, 314.97, 152.79),
        (0, 0.611, 328.94, 97.05, 342.49, 122.98),
        (0, 0.335, 356.62, 95.47, 372.33, 147.55),
        (0, 0.805, 464.08, 105.09, 495.74, 146.99),
        (0, 0.953, 276.11, 103.84, 291.44, 150.72),
    ],
    [
        (49, 0.532, 72.92, 45.96, 91.23, 80.57),
        (49, 0.204, 45.17, 45.34, 66.28, 79.83),
        (49, 0.782, 82.28, 47.04, 99.66, 78.50),
        (49, 0.202, 59.96, 46.17, 80.35, 80.48),
        (49, 0.883, 75.29, 23.01, 91.85, 50.85),
        (49, 0.271, 71.14, 1.10, 96.96, 28.33),
        (49, 0.561, 61.34, 55.23, 77.14, 79.57),
        (49, 0.204, 41.17, 45.78, 60.99, 78.48),
        (49, 0.349, 56.18, 44.80, 64.42, 56.25),
    ],
]
ASKED = [
    [(4, 214.15, 41.29, 562.41, 285.07)],
    [(2, 13.00, 22.75, 548.98, 632.42), (2, 1.66, 3.32, 270.26, 275.23)],
    [
        (4, 61.87, 276.25, 358.29, 379.43),
        (1, 2.75, 3.66, 162.15, 316.06),
        (0, 295.55, 93.96, 313.97, 152.79),
        (0, 326.94, 97.05, 340.49, 122.98),
        (0, 356.62, 95.47, 372.33, 147.55),
        (0, 462.08, 105.09, 493.74, 146.99),
        (0, 277.11, 103.84, 292.44, 150.72),
    ],
    [
        (49, 72.92, 45.96, 91.23, 80.57),
        (49, 50.17, 45.34, 71.28, 79.83),
        (49, 81.28, 47.04, 98.66, 78.50),
        (49, 63.96, 46.17, 84.35, 80.48),
        (49, 75.29, 23.01, 91.85, 50.85),
        (49, 56.39, 21.65, 75.66, 45.54),
        (49, 73.14, 1.10, 98.96, 28.33),
        (49, 62.34, 55.23, 78.14, 79.57),
        (49, 44.17, 45.78, 63.99, 78.48),
        (49, 58.18, 44.80, 66.42, 56.25),
    ],
]
VALUES = {
    "map": 0.637,
    "map_50": 0.859,
    "map_75": 0.761,
    "map_small": 0.622,
    "map_medium": 0.800,
    "map_large": 0.635,
    "mar_100": 0.652,
}


def boxes(images, width):
    found = np.zeros((len(images), max(map(len, images)), width), dtype=np.float64)
    found[:, :, 0] = -1
    for row, image in enumerate(images):
        for at, box in enumerate(image):
            found[row, at, : len(box)] = box
    return found


def test_detection_equals_what_is_published_of_an_excerpt_of_coco():
    asked = boxes([[(label, 1, *corners) for label, *corners in image] for image in ASKED], 8)
    scores = detection_scores(asked, boxes(FOUND, 6), num_classes=50)
    assert {name: round(scores[name], 3) for name in VALUES} == pytest.approx(VALUES)


def by_pycocotools(asked, found, num_classes):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(images):
        for image, some in enumerate(images):
            for box in some[some[:, 0] >= 0].tolist():
                size = [box[4] - box[2], box[5] - box[3]]
                yield {
                    "image_id": image,
                    "category_id": int(box[0]),
                    "bbox": [*box[2:4], *size],
                    "score": box[1],
                    "area": size[0] * size[1],
                }

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": index} for index in range(len(asked))],
            "categories": [{"id": index} for index in range(num_classes)],
            "annotations": [
                {**row, "id": index + 1, "iscrowd": int(row["score"] == 0)} for index, row in enumerate(rows(asked))
            ],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(list(rows(found))), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    at = {"map": 0, "map_50": 1, "map_75": 2, "map_small": 3, "map_medium": 4, "map_large": 5, "mar_100": 8}
    return {name: max(0.0, evaluation.stats[index]) for name, index in at.items()}


@pytest.mark.parametrize("seed", range(12))
def test_detection_equals_pycocotools_on_random_scenes(seed):
    rng = np.random.default_rng(seed)
    num_classes, images = int(rng.integers(1, 5)), int(rng.integers(1, 9))

    def scene(count, score):
        corners = rng.uniform(0, 150, (count, 2))
        sizes = rng.uniform(4, 130, (count, 2))
        return np.column_stack([rng.integers(0, num_classes, count), score(count), corners, corners + sizes])

    asked, found = [], []
    for _ in range(images):
        truth = scene(int(rng.integers(0, 6)), lambda count: (rng.random(count) > 0.15).astype(float))  # some crowds
        near = truth[rng.random(len(truth)) > 0.2].copy()
        near[:, 2:] += rng.normal(0, 4, near[:, 2:].shape)
        near[:, 1] = rng.random(len(near))
        asked.append(truth)
        found.append(np.concatenate([near, scene(int(rng.integers(0, 9)), rng.random)]))
    asked[0] = scene(3, np.ones)
    found[0] = np.concatenate([found[0], scene(1, rng.random)])
    asked, found = boxes(asked, 8), boxes(found, 6)
    assert detection_scores(asked, found, num_classes) == pytest.approx(by_pycocotools(asked, found, num_classes))


# sacrebleu's test/test_bleu.py and test_chrf.py, those with one reference and default settings (chrF there has beta 3).
@pytest.mark.parametrize(
    ("texts", "answers", "score"),
    [
        (["this is a test"], ["this is a test"], 100.0),
        (["", "", ""], ["The dog bit the man.", "It was not unexpected.", "The man bit him first."], 0.0),
    ],
)
def test_bleu_equals_the_cases_of_sacrebleu(texts, answers, score):
    assert written_scores(np.array(answers), np.array(texts, dtype=object))["bleu"] == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("Niemand hat die Absicht, eine Mauer zu errichten", "Niemand hat die Absicht, eine Mauer zu errichten", 100.0),
        ("a b c", "abc", 100.0),
        ("", "reference", 0.0),
        ("aa", "ab", 25.0),
        (
            "Co nás nejvíc trápí, protože lékaři si vybírají, kdo bude žít a kdo zemře.",
            "Nejvíce smutní jsme z toho, že musíme rozhodovat o tom, kdo bude žít a kdo zemře.",
            39.14078509,
        ),
    ],
)
def test_chrf_equals_the_cases_of_sacrebleu(text, answer, score):
    assert written_scores(np.array([answer]), np.array([text], dtype=object))["chrf"] == pytest.approx(score, abs=1e-4)


def test_a_generated_match_sets_white_space_at_the_ends_aside():
    found = written_scores(np.array(["ab c", "d", "e"]), np.array([" ab c\n", "d.", ""], dtype=object))
    assert found["generated_match"] == pytest.approx(1 / 3)
