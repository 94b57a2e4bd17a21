"""The result tables of trials that sweeper did not run: the contract's columns, null where the source has nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from sweeper.core.trial import TrialState
from sweeper.store.paths import ResultPaths
from sweeper.store.tables import CONFIRMATIONS, MEASUREMENTS, PREDICTIONS, TRIALS, column_type, make_table, write_table


@dataclass
class ImportedTrial:
    """A search trial from elsewhere.

    ``value`` and ``test`` are the validation and test score of its best epoch; ``curve`` holds a dictionary an epoch
    with ``epoch``, ``value`` and what else is known: ``elapsed_seconds``, ``train_loss``, ``validation_loss``.
    """

    trial_id: str
    number: int
    model: str
    state: TrialState
    value: float | None
    test: float | None = None
    epochs: int | None = None
    best_epoch: int | None = None
    elapsed_seconds: float | None = None
    seed: int | None = None
    reason: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ImportedConfirmation:
    """A run of a model's tuned or default configuration with one seed, scored on one split."""

    model: str
    config: str
    seed: int
    split: str
    value: float
    elapsed_seconds: float | None = None


def write_imported(
    paths: ResultPaths, metric: str, trials: Sequence[ImportedTrial], confirmations: Sequence[ImportedConfirmation]
) -> None:
    """Write the four tables; ``trials.parquet`` has one more column, ``test_value``, where there are test scores."""
    names = sorted({name for trial in trials for name in trial.params})
    kinds = {name: column_type(trial.params.get(name) for trial in trials) for name in names}
    fields = TRIALS + [(f"params_{name}", kinds[name]) for name in names]
    if any(trial.test is not None for trial in trials):
        fields = [*fields, ("test_value", pa.float64())]
    write_table(paths.trials, make_table([_row(trial, kinds) for trial in trials], fields))
    rows = [
        {**point, metric: point["value"], "trial_id": trial.trial_id, "model": trial.model}
        for trial in trials
        for point in trial.curve
    ]
    write_table(paths.measurements, make_table(rows, [*MEASUREMENTS, (metric, pa.float64())]))
    runs = [{**vars(run), "metric": metric} for run in confirmations]
    write_table(paths.confirmations, make_table(runs, CONFIRMATIONS))
    write_table(paths.predictions, make_table([], PREDICTIONS))


def _row(trial: ImportedTrial, kinds: dict[str, pa.DataType]) -> dict[str, Any]:
    texts = {name: kind == pa.string() for name, kind in kinds.items()}
    params = {
        f"params_{name}": str(value) if texts[name] and value is not None else value
        for name, value in trial.params.items()
    }
    return {
        "trial_id": trial.trial_id,
        "number": trial.number,
        "model": trial.model,
        "state": trial.state.value,
        "value": trial.value if trial.state is TrialState.COMPLETE else None,
        "epochs": trial.epochs if trial.epochs is not None else len(trial.curve),
        "best_epoch": trial.best_epoch,
        "elapsed_seconds": trial.elapsed_seconds,
        "seed": trial.seed,
        "node": "",
        "num_retries": 0,
        "reason": trial.reason,
        "params": json.dumps(trial.params),
        "effective": "{}",
        "test_value": trial.test,
        **params,
    }
