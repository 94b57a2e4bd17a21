"""Do remedies for imbalance pay when they are tuned? Two studies of rare wines, alike but for the search space.

    python benchmarks/imbalance.py --data DIR [--only plain|remedies] [--models bert] [--output DIR] [--json OUT]

DIR holds wine_quality_white/wine.csv (UCI). Grades become three classes: poor (at most 4), ordinary, and excellent (at
least 8), of which the first and the last are one wine in 27 each. Two small encoders are pretrained on the records of
the training split. The plain study tunes learning rate, batch size, weight decay and warm-up; the other also `balance`
(none, class weights, balanced sampling) and `focal_gamma`, with the same number of trials and the same default. Both
confirm with the same seeds, so that their test scores pair up. Each study may be run by itself; the comparison is
printed once both have ended.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import real_sets
from machine import facts

from sweeper import load_results

COMMON = """
  learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}
  batch_size: {type: categorical, choices: [16, 32]}
  weight_decay: {type: float, low: 1e-4, high: 0.1, log: true}
  warmup_ratio: {type: float, low: 0.0, high: 0.3}
"""
REMEDIES = """
  balance: {type: categorical, choices: [none, class-weights, sampler]}
  focal_gamma: {type: categorical, choices: [0.0, 1.0, 2.0]}
"""
DEFAULT = "learning_rate: 1e-3, batch_size: 32, weight_decay: 0.01, warmup_ratio: 0.1"
SPACES = {
    "plain": f"parameters:{COMMON}default: {{{DEFAULT}}}\n",
    "remedies": f"parameters:{COMMON.rstrip()}{REMEDIES}default: {{{DEFAULT}, balance: none, focal_gamma: 0.0}}\n",
}
MODELS = ("bert", "distilbert")
SHOWN = ("macro_f1", "average_precision")
COLUMNS = ("alcohol", "volatile_acidity", "free_sulfur_dioxide", "residual_sugar", "chlorides", "ph")
LABELLED = 1000


def graded(source: Path, target: Path) -> None:
    """Write the records with three classes in the place of grades."""
    table = pyarrow.csv.read_csv(source)
    grades = table.column("quality").to_pylist()
    labels = ["poor" if grade <= 4 else "excellent" if grade >= 8 else "ordinary" for grade in grades]
    pyarrow.csv.write_csv(table.select(list(COLUMNS)).append_column("class", pa.array(labels)), target)
    print(f"{target}: {dict(Counter(labels))}", flush=True)


def study(name: str, options: argparse.Namespace, labelled: int | None) -> dict[str, Any]:
    """Return a study; both share everything but name and space."""
    data = {"train": "wines.csv", "validation": 0.15, "test": 0.35}
    return {
        "schema": 1,
        "name": name,
        "storage_path": "results",
        "task": {
            "type": "text-classification",
            "data": data if labelled is None else {**data, "max_train_examples": labelled},
            "columns": {"input": list(COLUMNS), "target": "class", "significant_digits": 3},
            "metric": {"name": "macro_f1"},
            "max_length": 64,
        },
        "models": [{"name": model, "checkpoint": f"./{model}"} for model in options.models.split(",")],
        "search": {"num_trials": options.trials, "max_epochs": options.epochs, "space": f"{name}.yaml"},
        "confirm": {"num_seeds": options.seeds},
    }


def prepare(options: argparse.Namespace) -> None:
    """Write data, spaces and studies, and pretrain the encoders where they are missing."""
    home = options.output
    home.mkdir(parents=True, exist_ok=True)
    graded(options.data / "wine_quality_white" / "wine.csv", home / "wines.csv")
    for name, space in SPACES.items():
        (home / f"{name}.yaml").write_text(space)
        (home / f"{name}-study.yaml").write_text(json.dumps(study(name, options, LABELLED), indent=1))
    if not all((home / model / "model.safetensors").is_file() for model in MODELS):
        unlabelled = home / "pretraining.yaml"
        unlabelled.write_text(json.dumps(study("plain", options, None), indent=1))
        real_sets.make_models(home, unlabelled, real_sets.SETS["wine"], options.steps)


def scores(home: Path, name: str, metric: str) -> dict[str, dict[int, float]]:
    """Return by model the tuned runs' test scores by seed."""
    found: dict[str, dict[int, float]] = {}
    for row in load_results(home / "results" / name).confirmations.to_pylist():
        if (row["config"], row["split"], row["metric"]) == ("tuned", "test", metric):
            found.setdefault(row["model"], {})[row["seed"]] = row["value"]
    return found


def compare(home: Path) -> list[dict[str, Any]]:
    """Return a row a metric and model: means without and with remedies, and the paired differences by seed."""
    rows = []
    for metric in SHOWN:
        plain, remedies = (scores(home, name, metric) for name in SPACES)
        for model in plain:
            seeds = sorted(plain[model].keys() & remedies[model].keys())
            pairs = np.array([(plain[model][seed], remedies[model][seed]) for seed in seeds])
            best = load_results(home / "results" / "remedies").best_params[model]
            rows.append(
                {
                    "metric": metric,
                    "model": model,
                    "plain": pairs[:, 0].mean(),
                    "remedies": pairs[:, 1].mean(),
                    "differences": (pairs[:, 1] - pairs[:, 0]).tolist(),
                    "chosen": {key: best.get(key) for key in ("balance", "focal_gamma")},
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", choices=list(SPACES))
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated names")
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150, help="of pretraining")
    parser.add_argument("--prepare", action="store_true", help="make data and models, and stop")
    parser.add_argument("--output", type=Path, default=Path("results/imbalance"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.output = options.output.resolve()
    prepare(options)
    if options.prepare:
        return
    for name in [options.only] if options.only else SPACES:
        command = [sys.executable, "-m", "sweeper.cli", "run", str(options.output / f"{name}-study.yaml")]
        subprocess.run(command, check=True)
    if not all((options.output / "results" / name / "report" / "leaderboard.json").is_file() for name in SPACES):
        return
    rows = compare(options.output)
    for row in rows:
        shown = ", ".join(f"{value:+.4f}" for value in row["differences"])
        print(
            f"{row['metric']:18} {row['model']:10} plain {row['plain']:.4f}  with remedies {row['remedies']:.4f}"
            f"  by seed {shown}  chosen {row['chosen']}"
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": facts(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
