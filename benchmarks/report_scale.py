"""A large report: how long it takes to build, and how large its page is.

    python benchmarks/report_scale.py [--trials 10000] [--models 6] [--json OUT.json] [--keep FOLDER]

A simulated study of so many trials in all (ten epochs each, a fifth pruned, some failed), confirmed with ten seeds and
predictions on 1,000 test examples, is written as a result folder; then `sweeper report`'s work is timed in a fresh
process. Goals: under 20 s, under 15 MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from machine import facts, publish

from sweeper.core.trial import TrialState
from sweeper.store.manifest import Manifest, write_manifest
from sweeper.store.paths import ResultPaths
from sweeper.store.tables import (
    CONFIRMATIONS,
    MEASUREMENTS,
    PREDICTIONS,
    TRIALS,
    make_table,
    write_table,
)

EPOCHS, SEEDS, EXAMPLES, CLASSES = 10, 10, 1000, 8
SPACE = {
    "parameters": {
        "learning_rate": {"type": "float", "low": 1e-6, "high": 1e-3, "log": True},
        "batch_size": {"type": "categorical", "choices": [16, 32, 64]},
        "weight_decay": {"type": "float", "low": 1e-4, "high": 0.3, "log": True},
        "warmup_ratio": {"type": "float", "low": 0.0, "high": 0.6, "log": False},
        "dropout": {"type": "float", "low": 0.0, "high": 0.3, "log": False},
        "layer_decay": {"type": "float", "low": 0.65, "high": 1.0, "log": False},
        "unfreezing": {"type": "categorical", "choices": ["full", "head_only", "last_blocks", "gradual"]},
        "num_unfrozen_blocks": {
            "type": "int",
            "low": 1,
            "high": 6,
            "log": False,
            "when": {"unfreezing": ["last_blocks"]},
        },
    },
    "default": {"learning_rate": 2e-5, "batch_size": 32, "unfreezing": "full"},
    "source": "simulated",
}


def draw(rng: np.random.Generator) -> dict[str, Any]:
    params: dict[str, Any] = {
        "learning_rate": float(10 ** rng.uniform(-6, -3)),
        "batch_size": int(rng.choice([16, 32, 64])),
        "weight_decay": float(10 ** rng.uniform(-4, np.log10(0.3))),
        "warmup_ratio": float(rng.uniform(0, 0.6)),
        "dropout": float(rng.uniform(0, 0.3)),
        "layer_decay": float(rng.uniform(0.65, 1)),
        "unfreezing": str(rng.choice(["full", "head_only", "last_blocks", "gradual"])),
    }
    if params["unfreezing"] == "last_blocks":
        params["num_unfrozen_blocks"] = int(rng.integers(1, 7))
    return params


def write_study(root: Path, models: list[str], per_model: int, seed: int) -> None:
    """Write the result folder of a study that looks like a real one."""
    rng = np.random.default_rng(seed)
    trials: list[dict[str, Any]] = []
    measurements: list[dict[str, Any]] = []
    confirmations: list[dict[str, Any]] = []
    parts = []
    targets = rng.integers(CLASSES, size=EXAMPLES)
    hard = rng.random(EXAMPLES)
    for rank, model in enumerate(models):
        ceiling = 0.93 - 0.025 * rank
        for number in range(per_model):
            params = draw(rng)
            distance = abs(np.log10(params["learning_rate"]) + 4.5 + 0.1 * rank) + 2 * abs(params["dropout"] - 0.1)
            top = ceiling - 0.12 * distance + rng.normal(0, 0.01)
            state = TrialState.PRUNED if rng.random() < 0.2 else TrialState.COMPLETE
            state = TrialState.FAIL if rng.random() < 0.01 else state
            curve = top - 0.3 * np.exp(-np.arange(1, EPOCHS + 1) / 2.5) + rng.normal(0, 0.004, EPOCHS)
            curve = curve[: 3 if state is TrialState.PRUNED else EPOCHS]
            trial_id, second = f"{model}-t{number:05d}", float(rng.uniform(2, 4) * (1 + rank))
            names = {f"params_{name}": value for name, value in params.items()}
            trials.append(
                {"trial_id": trial_id, "number": number, "model": model, "state": state.value}
                | {"value": float(curve.max()) if state is TrialState.COMPLETE else None, "epochs": len(curve)}
                | {"best_epoch": int(curve.argmax()) + 1, "elapsed_seconds": second * len(curve), "num_retries": 0}
                | {"device_seconds": second * len(curve), "seed": number, "node": "simulated", "effective": "{}"}
                | {
                    "reason": "DivergedError: loss is nan" if state is TrialState.FAIL else "",
                    "params": json.dumps(params),
                }
                | names
            )
            measurements += [
                {"trial_id": trial_id, "model": model, "epoch": epoch, "elapsed_seconds": second * epoch}
                | {"train_loss": 1 - value, "validation_loss": 1 - value, "accuracy": float(value)}
                for epoch, value in enumerate(curve, start=1)
            ]
        for config, base in (("tuned", ceiling), ("default", ceiling - 0.04)):
            for index in range(SEEDS):
                right = rng.random(EXAMPLES) < np.clip(base + 0.35 * (0.5 - hard) ** 3 * 8, 0, 1)
                wrong = (targets + rng.integers(1, CLASSES, size=EXAMPLES)) % CLASSES
                answers = np.where(right, targets, wrong)
                score = float(right.mean())
                run = {"model": model, "config": config, "seed": 2 * index + 1, "elapsed_seconds": 30.0 * (1 + rank)}
                confirmations += [
                    run | {"split": "validation", "metric": "accuracy", "value": score + 0.005},
                    run | {"split": "test", "metric": "accuracy", "value": score},
                ]
                part = {key: [run[key]] * EXAMPLES for key in ("model", "config", "seed")}
                part |= {
                    "example_id": [f"test-{i:05d}" for i in range(EXAMPLES)],
                    "target": targets,
                    "prediction": answers,
                }
                part["probabilities"] = [[1 / CLASSES] * CLASSES] * EXAMPLES
                parts.append(pa.table(part, schema=pa.schema(PREDICTIONS)))
    paths = ResultPaths(root)
    kinds = {"learning_rate": pa.float64(), "batch_size": pa.int64(), "weight_decay": pa.float64()}
    kinds |= {"warmup_ratio": pa.float64(), "dropout": pa.float64(), "layer_decay": pa.float64()}
    kinds |= {"unfreezing": pa.string(), "num_unfrozen_blocks": pa.int64()}
    write_table(paths.trials, make_table(trials, TRIALS + [(f"params_{name}", kind) for name, kind in kinds.items()]))
    write_table(paths.measurements, make_table(measurements, [*MEASUREMENTS, ("accuracy", pa.float64())]))
    write_table(paths.confirmations, make_table(confirmations, CONFIRMATIONS))
    write_table(paths.predictions, pa.concat_tables(parts))
    seeds = [2 * index + 1 for index in range(SEEDS)]
    names = [f"class {letter}" for letter in "abcdefgh"]
    counts = {split: dict.fromkeys(names, EXAMPLES // CLASSES) for split in ("train", "validation", "test")}
    scheduler = {"type": "asha", "reduction_factor": 3, "grace_fraction": 0.25}
    content = {
        "objective": {"metric": "accuracy", "goal": "maximize"},
        "task": {"type": "text-classification"},
        "models": [{"name": m, "checkpoint": f"simulated/{m}", "weights": "0" * 64, "space": SPACE} for m in models],
        "search": {"num_trials": per_model, "max_epochs": EPOCHS, "sampler": "auto", "scheduler": scheduler},
        "confirm": {"seeds": seeds, "vary": ["seed"], "delta": 0.01},
    }
    costs = {
        model: {
            "num_parameters": 20_000_000 * (6 - rank % 6),
            "checkpoint_bytes": 80_000_000 * (6 - rank % 6),
            "device": "cpu",
            "num_threads": 1,
            "precision": "fp32",
            "batches": [
                {"batch_size": size, "seconds": 0.004 * (6 - rank % 6) * size**0.8, "examples_per_second": 100.0}
                for size in (1, 32)
            ],
        }
        for rank, model in enumerate(models)
    }
    opening = {"at": "2026-01-01T00:00:00+00:00", "reason": "confirmation", "num_runs": 2 * SEEDS * len(models)}
    write_manifest(
        paths,
        Manifest(
            name="scale",
            plan_hash="0" * 64,
            content=content,
            versions={"sweeper": "simulated"},
            data={"fingerprint": "f" * 64, "counts": counts, "classes": names},
            seeds={"study": seed, "confirmation": seeds},
            created_at="2026-01-01T00:00:00+00:00",
            test_openings=[opening],
            costs=costs,
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000, help="of all models together")
    parser.add_argument("--models", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="write the result folder here and leave it")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.keep or Path(folder) / "scale"
        models = [f"model-{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"[: arguments.models]]
        write_study(root, models, -(-arguments.trials // len(models)), arguments.seed)
        command = (
            "import resource, sys, time; from pathlib import Path; from sweeper.report.build import build_report\n"
            "build_report(Path(sys.argv[1])); usage = resource.getrusage(resource.RUSAGE_SELF)\n"
            "print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)"
        )
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", command, str(root)], check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        cpu_seconds, peak = map(float, done.stdout.split())
        size = (root / "report" / "index.html").stat().st_size / 1e6
    found = {"trials": arguments.trials, "models": arguments.models, "seconds": round(seconds, 1)}
    found |= {"cpu_seconds": round(cpu_seconds, 1), "peak_memory_mb": round(peak), "page_mb": round(size, 2)}
    found |= {"passed": seconds < 20 and size < 15, "machine": facts()}
    publish(found, arguments.json)


if __name__ == "__main__":
    main()
