"""A result folder with known scores, for tests of what reads it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from sweeper.core.objective import Objective
from sweeper.core.trial import Measurement, TrialKind, TrialRecord, TrialSpec, TrialState
from sweeper.store.manifest import Manifest, read_manifest, write_manifest
from sweeper.store.paths import ResultPaths
from sweeper.store.state import StudyState, TestResult
from sweeper.store.tables import PREDICTIONS, write_table, write_tables

SPACE = {
    "parameters": {
        "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
        "unfreezing": {"type": "categorical", "choices": ["full", "head_only"]},
    },
    "default": {"learning_rate": 1e-3, "unfreezing": "full"},
    "source": "a paper",
}
SEEDS = list(range(1, 16, 2))


def make_results(root, models=("good", "middling", "<img src=x onerror=alert(1)>"), confirmed=True):
    """Write a result folder of a study with known scores."""
    rng = np.random.default_rng(0)
    state = StudyState(freezings=[[]] if confirmed else [])

    def measure(value):
        return Measurement(
            epoch=1, train_loss=1.0, validation_loss=1.0, metrics={"accuracy": value}, elapsed_seconds=2.0
        )

    for rank, model in enumerate(models):
        for number in range(12):
            params = {"learning_rate": 9.9e-3 if number == 5 else 1e-4, "unfreezing": "full"}
            spec = TrialSpec(
                trial_id=f"{rank}-t{number}", number=number, model=model, params=params, seed=0, max_epochs=1
            )
            kind = TrialState.PRUNED if number % 3 == 2 and number != 5 else TrialState.COMPLETE
            if rank == 1 and number == 3:
                kind = TrialState.FAIL
            value = 0.95 - rank / 10 if number == 5 else 0.6
            state.trials[spec.trial_id] = TrialRecord(
                spec=spec,
                state=kind,
                measurements=(measure(value),),
                value=value if kind is TrialState.COMPLETE else None,
                best_epoch=1,
                elapsed_seconds=2.0,
                device_seconds=2.0,
                started_at=1.0,
                finished_at=2.0,
                reason="DivergedError: <b>nan</b>" if kind is TrialState.FAIL else "",
            )
        for config, base in (("tuned", 0.9 - rank / 10), ("default", 0.6)) if confirmed else ():
            for seed in SEEDS:
                spec = TrialSpec(
                    trial_id=f"{rank}-{config}-{seed}",
                    number=0,
                    model=model,
                    params={},
                    seed=seed,
                    max_epochs=1,
                    kind=TrialKind.CONFIRM,
                    config=config,
                )
                score = float(base + rng.normal(0, 0.005))
                state.trials[spec.trial_id] = TrialRecord(
                    spec=spec, state=TrialState.COMPLETE, measurements=(measure(score),), value=score
                )
                state.freezings[0].append(spec.trial_id)
                state.tested[spec.trial_id] = TestResult({"accuracy": score}, 10, 0.1)
    paths = ResultPaths(root)
    content = {
        "objective": {"metric": "accuracy", "goal": "maximize"},
        "task": {"type": "image-classification"},
        "models": [{"name": model, "checkpoint": "x", "weights": "y", "space": SPACE} for model in models],
        "search": {
            "num_trials": 12,
            "max_epochs": 1,
            "sampler": "tpe",
            "scheduler": {"type": "asha", "reduction_factor": 3, "grace_fraction": 0.25},
        },
        "confirm": {"seeds": SEEDS, "vary": ["seed"]},
    }
    counts = {split: {"a": 6, "b": 4} for split in ("train", "validation", "test")}
    write_manifest(
        paths,
        Manifest(
            name="demo",
            plan_hash="0" * 64,
            content=content,
            versions={"sweeper": "0"},
            data={"fingerprint": "f" * 64, "counts": counts, "classes": ["a", "b"]},
            seeds={"study": 0, "confirmation": SEEDS},
            created_at="2026-01-01T00:00:00+00:00",
            test_openings=[{"at": "2026-01-01", "reason": "confirmation", "num_runs": 48}] if confirmed else [],
        ),
    )
    write_tables(paths, state, Objective("accuracy", "maximize"))
    return root


def add_predictions(root, models=("good", "middling", "<img src=x onerror=alert(1)>")):
    """Give a study test predictions on ten examples: model r is wrong on the last r of them, and its costs."""
    targets = np.array([0, 1] * 5)
    parts = []
    for rank, model in enumerate(models):
        answers = targets.copy()
        answers[len(answers) - rank :] ^= 1
        for seed in SEEDS:
            part = {"model": [model] * 10, "config": ["tuned"] * 10, "seed": [seed] * 10}
            part |= {"example_id": [f"e{index}" for index in range(10)], "target": targets, "prediction": answers}
            parts.append(pa.table(part | {"probabilities": [[0.5, 0.5]] * 10}, schema=pa.schema(PREDICTIONS)))
    paths = ResultPaths(root)
    write_table(paths.predictions, pa.concat_tables(parts))
    manifest = read_manifest(paths)
    manifest.costs = {
        model: {
            "num_parameters": 1_000_000 * (3 - rank),
            "checkpoint_bytes": 4_000_000,
            "device": "cpu",
            "num_threads": 1,
            "precision": "fp32",
            "batches": [
                {"batch_size": size, "seconds": 0.001 * (3 - rank), "examples_per_second": 9.0} for size in (1, 32)
            ],
        }
        for rank, model in enumerate(models)
    }
    manifest.checkpoints = {model: {"model_type": "vit", "licence": "mit"} for model in models}
    write_manifest(paths, manifest)
    return root
