"""Writes two of scikit-learn's real data sets as csv files: prices-like numbers, and fraud-like imbalance.

    python examples/tabular/make_data.py

``data/diabetes.csv``: 442 patients, the progression of their disease after a year, and its fifth as a grade, 0 to 4.
``data/tumours.csv``: breast cancer, thinned to 40 malignant tumours among 357 benign ones (one in ten).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes

HERE = Path(__file__).parent / "data"
MALIGNANT = 40


def write(name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write one csv file."""
    HERE.mkdir(exist_ok=True)
    with (HERE / name).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    print(HERE / name)


def main() -> None:
    """Write both."""
    found = load_diabetes(scaled=False)
    grades = np.searchsorted(np.quantile(found.target, [0.2, 0.4, 0.6, 0.8]), found.target)
    rows = [
        [*(f"{cell:.4g}" for cell in row), value, grade]
        for row, value, grade in zip(found.data, found.target, grades, strict=True)
    ]
    write("diabetes.csv", [*found.feature_names, "progression", "grade"], rows)
    tumours = load_breast_cancer()
    rng = np.random.default_rng(0)
    malignant, benign = np.flatnonzero(tumours.target == 0), np.flatnonzero(tumours.target == 1)
    kept = np.sort(np.concatenate([rng.choice(malignant, MALIGNANT, replace=False), benign]))
    columns = [name.replace(" ", "_") for name in tumours.feature_names[:10]]
    chosen = [
        [*(f"{cell:.4g}" for cell in tumours.data[row, :10]), "benign" if tumours.target[row] else "malignant"]
        for row in kept
    ]
    write("tumours.csv", [*columns, "tumour"], chosen)


if __name__ == "__main__":
    main()
