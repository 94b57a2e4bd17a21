"""The trivial and a classical baseline on a study's own splits, to stand beside its leaderboard.

    python benchmarks/baselines.py STUDY.yaml [--json OUT.json]

Trivial: the most frequent training class. Classical: logistic regression on TF-IDF of words and character n-grams, or
on pixels of images shrunk to 32 x 32; its C is chosen on validation. Scored on the test split with the task's metrics.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from machine import facts
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_union
from sklearn.preprocessing import StandardScaler

from sweeper import load_study
from sweeper.workflows.study import provisional

SIDE = 32


def features(tables: dict[str, pa.Table]) -> dict[str, Any]:
    """Turn the splits into feature matrices, fitted on train."""
    if "text" in tables["train"].column_names:
        texts = {split: table.column("text").to_pylist() for split, table in tables.items()}
        union = make_union(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=2),
        )
        union.fit(texts["train"])
        return {split: union.transform(values) for split, values in texts.items()}
    pixels = {}
    for split, table in tables.items():
        cells = (Image.open(io.BytesIO(cell.as_py())).convert("RGB") for cell in table.column("image"))
        pixels[split] = np.stack([np.asarray(image.resize((SIDE, SIDE))).ravel() / 255 for image in cells])
    scaler = StandardScaler().fit(pixels["train"])
    return {split: scaler.transform(values) for split, values in pixels.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with provisional(load_study(arguments.study)) as study:
        tables = {
            "train": study.data.train().combine_chunks(),
            "validation": study.data.validation().combine_chunks(),
            "test": study.data.open_test().combine_chunks(),
        }
        targets = {split: table.column("label").to_numpy() for split, table in tables.items()}
        x = features(tables)
        num_classes = len(study.data.classes)
        best: tuple[float, Any] = (-np.inf, None)
        for c in (0.01, 0.1, 1.0, 10.0, 100.0):
            model = LogisticRegression(C=c, max_iter=500).fit(x["train"], targets["train"])
            score = model.score(x["validation"], targets["validation"])
            best = max(best, (score, model), key=lambda pair: pair[0])
        counts = np.bincount(targets["train"], minlength=num_classes)
        constant = np.tile(counts / counts.sum(), (len(targets["test"]), 1)).astype(np.float32)
        found = {
            "trivial": study.task.score(targets["test"], constant),
            "classical": study.task.score(targets["test"], best[1].predict_proba(x["test"]).astype(np.float32)),
        }
    metric = study.objective.metric
    for name, scores in found.items():
        print(f"{name}: test {metric} {scores[metric]:.4f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**found, "machine": facts()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
