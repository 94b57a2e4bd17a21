"""Scenes of scikit-learn's real handwritten digits, with a box around each: data for detection without a network.

    python examples/detection/scenes.py [--digits 5-9] [--count 240] [--output FOLDER]

Writes a Pascal VOC folder (JPEGImages, Annotations, ImageSets/Main with train, val and test). Each scene has one to
four digits of random size on a noisy background; no digit image stands in two splits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

SIDE = 64  # pixels of a scene
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}

Object = tuple[int, int, int, int, int]
"""Digit and corners x0, y0, x1, y1."""


def digits(classes: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the 8 x 8 images (N, 8, 8), 0 to 1, and their digits (N,)."""
    images, labels = load_digits(return_X_y=True)
    mine = np.isin(labels, classes)
    return images[mine].reshape(-1, 8, 8) / 16, labels[mine]


def compose(
    images: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], list[Object]]:
    """Return one scene (64, 64) and its objects; boxes are tight around the ink and hardly overlap."""
    scene = rng.uniform(0, 0.15, (SIDE, SIDE))
    taken = np.zeros((SIDE, SIDE), dtype=bool)
    objects: list[Object] = []
    for _ in range(rng.integers(1, 5)):
        row, side = rng.integers(len(images)), int(rng.integers(16, 29))
        ink = np.asarray(
            Image.fromarray((images[row] * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
        )
        x, y = rng.integers(0, SIDE - side, 2)
        rows, columns = np.flatnonzero((ink > 64).any(1)), np.flatnonzero((ink > 64).any(0))
        box = (x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1)
        if taken[box[1] : box[3], box[0] : box[2]].any():
            continue
        taken[box[1] : box[3], box[0] : box[2]] = True
        part = scene[y : y + side, x : x + side]
        np.maximum(part, ink / 255, out=part)
        objects.append((int(labels[row]), *(int(edge) for edge in box)))
    return (scene * 255).astype(np.uint8), objects


def write(folder: Path, classes: Sequence[int], count: int, seed: int) -> None:
    """Write a Pascal VOC folder of ``count`` scenes."""
    rng = np.random.default_rng(seed)
    images, labels = digits(classes)
    order = rng.permutation(len(images))
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    begin, number = 0, 0
    for split, share in SHARES.items():
        rows = order[begin : begin + round(share * len(order))]
        begin += len(rows)
        names = [f"scene{number + i:04d}" for i in range(round(share * count))]
        number += len(names)
        for name in names:
            scene, objects = compose(images[rows], labels[rows], rng)
            Image.fromarray(scene).convert("RGB").save(folder / f"JPEGImages/{name}.png")
            (folder / f"Annotations/{name}.xml").write_text(annotation(name, objects))
        (folder / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))


def annotation(name: str, objects: Sequence[Object]) -> str:
    """Return a Pascal VOC annotation: pixels are counted from 1, both ends included."""
    items = "".join(
        f"<object><name>{digit}</name><difficult>0</difficult><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>\n"
        for digit, x0, y0, x1, y1 in objects
    )
    return f"<annotation><filename>{name}.png</filename>\n{items}</annotation>\n"


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", default="5-9")
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data")
    arguments = parser.parse_args()
    low, _, high = arguments.digits.partition("-")
    write(arguments.output, range(int(low), int(high or low) + 1), arguments.count, arguments.seed)
    print(f"{arguments.output}: {arguments.count} scenes")


if __name__ == "__main__":
    main()
