"""Do remedies for imbalance pay when they are tuned? Two studies of long-tailed digits, alike but for the search space.

    python benchmarks/imbalance.py [--only plain|remedies] [--trials 12] [--epochs 8] [--seeds 8] [--json OUT]

scikit-learn's handwritten digits 5 to 9, thinned as Cui et al. 2019 (arXiv 1901.05555) thin CIFAR: 80 training images
of a 5 down to 4 of a 9, each class a constant factor rarer than the one before. Validation (40 a class) and test (60 a
class) stay balanced, as there and in ImageNet-LT: asked is how well every class is recognised, and an equally thinned
split would hold too few of the rarest to tell. Two of the quickstart's models take part, pretrained on the digits 0 to
4. The plain study tunes learning rate, batch size, weight decay and warm-up; the other also `balance` (none, class
weights, balanced sampling) and `focal_gamma`, with the same number of trials and the same default. Both confirm with
the same seeds, so that their test scores pair up. The comparison is printed once both studies have ended.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import facts

from sweeper import load_results
from sweeper.data.builtin import read_builtin
from sweeper.stats.estimates import holm, mean_interval, paired_permutation

PRETRAIN = Path(__file__).resolve().parent.parent / "examples" / "quickstart" / "pretrain.py"
COMMON = """
  learning_rate: {type: float, low: 1e-4, high: 3e-2, log: true}
  batch_size: {type: categorical, choices: [8, 16, 32]}
  weight_decay: {type: float, low: 1e-4, high: 0.1, log: true}
  warmup_ratio: {type: float, low: 0.0, high: 0.3}
"""
REMEDIES = """
  balance: {type: categorical, choices: [none, class-weights, sampler]}
  focal_gamma: {type: categorical, choices: [0.0, 1.0, 2.0]}
"""
DEFAULT = "learning_rate: 1e-3, batch_size: 16, weight_decay: 0.01, warmup_ratio: 0.1"
SPACES = {
    "plain": f"parameters:{COMMON}default: {{{DEFAULT}}}\n",
    "remedies": f"parameters:{COMMON.rstrip()}{REMEDIES}default: {{{DEFAULT}, balance: none, focal_gamma: 0.0}}\n",
}
MODELS = ("resnet", "vit")
METRIC = "macro_f1"
MOST, FEWEST = 80, 4  # training images of the first class and of the last
HELD_OUT = {"test": 60, "validation": 40}  # images a class


def long_tail(table: pa.Table) -> dict[str, pa.Table]:
    """Return balanced held-out splits and a training split in which each class is rarer than the one before."""
    labels = np.asarray(table.column("label").to_pylist())
    classes = np.unique(labels)
    counts = np.geomspace(MOST, FEWEST, len(classes)).round().astype(int)
    rng = np.random.default_rng(0)
    parts: dict[str, list[int]] = {"test": [], "validation": [], "train": []}
    for name, count in zip(classes, counts, strict=True):
        rows = rng.permutation(np.flatnonzero(labels == name)).tolist()
        for split, size in (HELD_OUT | {"train": count}).items():
            parts[split] += rows[:size]
            rows = rows[size:]
    print(f"training images: {dict(zip(classes.tolist(), counts.tolist(), strict=True))}", flush=True)
    return {split: table.take(sorted(rows)) for split, rows in parts.items()}


def study(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return a study; both share everything but name and space."""
    return {
        "schema": 1,
        "name": name,
        "storage_path": "results",
        "task": {
            "type": "image-classification",
            "data": {split: f"{split}.parquet" for split in ("train", *HELD_OUT)},
            "metric": {"name": METRIC},
        },
        "models": [{"name": model, "checkpoint": f"./{model}"} for model in MODELS],
        "search": {"num_trials": options.trials, "max_epochs": options.epochs, "space": f"{name}.yaml"},
        "confirm": {"num_seeds": options.seeds},
    }


def prepare(options: argparse.Namespace) -> None:
    """Write data, spaces and studies, and pretrain the models where they are missing."""
    home = options.output
    home.mkdir(parents=True, exist_ok=True)
    for split, table in long_tail(read_builtin("digits?classes=5-9")).items():
        pq.write_table(table, home / f"{split}.parquet")
    for name, space in SPACES.items():
        (home / f"{name}.yaml").write_text(space)
        (home / f"{name}-study.yaml").write_text(json.dumps(study(name, options), indent=1))
    if not all((home / model / "model.safetensors").is_file() for model in MODELS):
        subprocess.run([sys.executable, str(PRETRAIN), "--output", str(home)], check=True)


def scores(home: Path, name: str) -> dict[str, dict[int, float]]:
    """Return by model the tuned runs' test scores by seed."""
    found: dict[str, dict[int, float]] = {}
    for row in load_results(home / "results" / name).confirmations.to_pylist():
        if (row["config"], row["split"], row["metric"]) == ("tuned", "test", METRIC):
            found.setdefault(row["model"], {})[row["seed"]] = row["value"]
    return found


def compare(home: Path) -> list[dict[str, Any]]:
    """Return a row a model: means without and with remedies, and the paired differences by seed with their interval."""
    plain, remedies = (scores(home, name) for name in SPACES)
    best = load_results(home / "results" / "remedies").best_params
    rows = []
    for model in MODELS:
        seeds = sorted(plain[model].keys() & remedies[model].keys())
        without, tuned = (np.array([found[model][seed] for seed in seeds]) for found in (plain, remedies))
        rows.append(
            {
                "model": model,
                "plain": without.mean(),
                "remedies": tuned.mean(),
                "by_seed": (tuned - without).tolist(),
                "difference": asdict(mean_interval(tuned - without)),
                "p_value": paired_permutation(tuned, without),
                "chosen": {key: best[model].get(key) for key in ("balance", "focal_gamma")},
            }
        )
    for row, adjusted in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_value"] = float(adjusted)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(SPACES))
    parser.add_argument("--trials", type=int, default=12, help="for each model")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=8, help="at confirmation: two exact tests at 5%% need seven")
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
        interval = row["difference"]
        print(
            f"{row['model']:8} {METRIC} plain {row['plain']:.4f}  with remedies {row['remedies']:.4f}  difference"
            f" {interval['mean']:+.4f} [{interval['low']:+.4f}, {interval['high']:+.4f}]  p {row['p_value']:.4f} (Holm)"
            f"  by seed {', '.join(f'{value:+.4f}' for value in row['by_seed'])}  chosen {row['chosen']}"
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": facts(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
