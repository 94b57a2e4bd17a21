"""The result tables of the contract: Parquet files that pandas, DuckDB and Arrow read as they are.

All are derived from the ledger (and the predictions' parts) and replaced whole; nothing reads them to resume.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sweeper.core.errors import InputError, Problem
from sweeper.core.objective import Objective
from sweeper.core.selection import best_measurement
from sweeper.core.trial import TrialKind, TrialRecord, TrialState
from sweeper.store.paths import ResultPaths, replace_file
from sweeper.store.state import StudyState

SCHEMA = 1

_TIME = pa.timestamp("us", tz="UTC")
TRIALS = [
    ("trial_id", pa.string()),
    ("number", pa.int64()),
    ("model", pa.string()),
    ("state", pa.string()),
    ("value", pa.float64()),
    ("epochs", pa.int64()),
    ("best_epoch", pa.int64()),
    ("elapsed_seconds", pa.float64()),
    ("device_seconds", pa.float64()),
    ("started_at", _TIME),
    ("finished_at", _TIME),
    ("seed", pa.int64()),
    ("node", pa.string()),
    ("num_retries", pa.int64()),
    ("reason", pa.string()),
    ("params", pa.string()),
    ("effective", pa.string()),
]
MEASUREMENTS = [
    ("trial_id", pa.string()),
    ("model", pa.string()),
    ("epoch", pa.int64()),
    ("elapsed_seconds", pa.float64()),
    ("train_loss", pa.float64()),
    ("validation_loss", pa.float64()),
]
CONFIRMATIONS = [
    ("model", pa.string()),
    ("config", pa.string()),
    ("seed", pa.int64()),
    ("split", pa.string()),
    ("metric", pa.string()),
    ("value", pa.float64()),
    ("elapsed_seconds", pa.float64()),
]
PREDICTIONS = [
    ("model", pa.string()),
    ("config", pa.string()),
    ("seed", pa.int64()),
    ("example_id", pa.string()),
    ("target", pa.int64()),
    ("prediction", pa.int64()),
    ("probabilities", pa.list_(pa.float32())),
]


FOUND_BOXES = pa.list_(pa.struct([("label", pa.int64()), ("score", pa.float32()), ("box", pa.list_(pa.float32()))]))
"""Targets and predictions of detection: class index, score (a target's is 1, or 0 where it is not counted) and corners
x0, y0, x1, y1 in pixels of the original image."""


@dataclass(frozen=True)
class Tables:
    """The four result tables."""

    trials: pa.Table
    measurements: pa.Table
    confirmations: pa.Table
    predictions: pa.Table


def write_tables(paths: ResultPaths, state: StudyState, objective: Objective) -> None:
    """Write all four tables from the ledger's state and the predictions' parts."""
    search = [record for record in state.trials.values() if record.spec.kind is TrialKind.SEARCH]
    write_table(paths.trials, _trials(search))
    write_table(paths.measurements, _measurements(search))
    write_table(paths.confirmations, _confirmations(state, objective))
    parts = [paths.predictions_part(trial_id) for trial_id in state.frozen or () if trial_id in state.tested]
    tables = [pq.read_table(part) for part in parts if part.is_file() or paths.storage.obtain(part)]
    both = state.shared
    tables += [_as_default(table) for table in tables if table.num_rows and table["model"][0].as_py() in both]
    if paths.storage.obtain(paths.predictions):  # parts live in scratch, which may have been deleted since
        tables = [_without(pq.read_table(paths.predictions), tables), *tables]
    write_table(paths.predictions, pa.concat_tables(tables) if tables else make_table([], PREDICTIONS))
    for table in paths.tables:
        paths.storage.publish(table)


def _as_default(table: pa.Table) -> pa.Table:
    """Return the predictions of a run that counts for both configurations as the default's."""
    at = table.schema.get_field_index("config")
    return table.set_column(at, "config", pa.array(["default"] * len(table), pa.string()))


def _without(table: pa.Table, parts: Sequence[pa.Table]) -> pa.Table:
    """Leave out the runs of which there are parts."""
    keys = ["model", "config", "seed"]
    again = {tuple(part.slice(0, 1).select(keys).to_pylist()[0].values()) for part in parts if len(part)}
    runs = zip(*(table.column(key).to_pylist() for key in keys), strict=True)
    return table.filter(pa.array([run not in again for run in runs], pa.bool_()))


def read_tables(paths: ResultPaths) -> Tables:
    """Read all four tables.

    Raises
    ------
    InputError
        When one is missing or is no Parquet file.
    """
    return Tables(*(read_table(path) for path in paths.tables))


def write_predictions(
    path: Path,
    *,
    model: str,
    config: str,
    seed: int,
    example_ids: Sequence[str],
    targets: NDArray[Any],
    predictions: NDArray[Any],
    probabilities: NDArray[np.float32],
) -> None:
    """Write the part of one confirmation run: N examples, ``probabilities`` (N, K); of boxes their scores.

    ``target`` and ``prediction`` are class indices, numbers, texts, lists of label indices for rows of 0 and 1, or
    lists of boxes (`FOUND_BOXES`) for arrays (N, M, 6 or more).
    """
    if probabilities.ndim == 3:
        probabilities = probabilities[:, :, 1]
    count, num_classes = probabilities.shape
    offsets = pa.array(np.arange(0, count * num_classes + 1, num_classes, dtype=np.int32))
    columns = {
        "model": pa.array([model] * count, pa.string()),
        "config": pa.array([config] * count, pa.string()),
        "seed": pa.array(np.full(count, seed), pa.int64()),
        "example_id": pa.array(list(example_ids), pa.string()),
        "target": _answers(targets),
        "prediction": _answers(predictions),
        "probabilities": pa.ListArray.from_arrays(offsets, pa.array(probabilities.ravel(), pa.float32())),
    }
    write_table(path, pa.table(columns))


def _answers(values: NDArray[Any]) -> pa.Array:
    if values.ndim == 3:
        rows = [
            [{"label": int(box[0]), "score": box[1], "box": box[2:6].tolist()} for box in found if box[0] >= 0]
            for found in values
        ]
        return pa.array(rows, FOUND_BOXES)
    if values.ndim == 2:
        return pa.array([np.flatnonzero(row).tolist() for row in values], pa.list_(pa.int64()))
    kind = {"i": pa.int64(), "f": pa.float64()}.get(values.dtype.kind, pa.string())
    return pa.array(values, kind)


def _trials(records: Sequence[TrialRecord]) -> pa.Table:
    names = sorted({name for record in records for name in record.spec.params})
    rows = []
    for record in records:
        spec = record.spec
        rows.append(
            {
                "trial_id": spec.trial_id,
                "number": spec.number,
                "model": spec.model,
                "state": record.state.value,
                "value": record.value,
                "epochs": len(record.measurements),
                "best_epoch": record.best_epoch,
                "elapsed_seconds": record.elapsed_seconds,
                "device_seconds": record.device_seconds,
                "started_at": _utc(record.started_at),
                "finished_at": _utc(record.finished_at),
                "seed": spec.seed,
                "node": record.node,
                "num_retries": record.num_retries,
                "reason": record.reason,
                "params": json.dumps(dict(spec.params)),
                "effective": json.dumps(dict(record.effective)),
                **{f"params_{name}": spec.params.get(name) for name in names},
            }
        )
    columns = [(f"params_{name}", column_type(record.spec.params.get(name) for record in records)) for name in names]
    for row in rows:
        for name, kind in columns:
            row[name] = _as(row[name], kind)
    return make_table(rows, TRIALS + columns)


def _measurements(records: Sequence[TrialRecord]) -> pa.Table:
    metrics = sorted({name for record in records for m in record.measurements for name in m.metrics})
    rows = [
        {
            "trial_id": record.spec.trial_id,
            "model": record.spec.model,
            "epoch": m.epoch,
            "elapsed_seconds": m.elapsed_seconds,
            "train_loss": m.train_loss,
            "validation_loss": m.validation_loss,
            **m.metrics,
        }
        for record in records
        for m in record.measurements
    ]
    return make_table(rows, MEASUREMENTS + [(name, pa.float64()) for name in metrics])


def _confirmations(state: StudyState, objective: Objective) -> pa.Table:
    rows: list[dict[str, Any]] = []
    both = state.shared
    for trial_id in state.frozen or ():
        record = state.trials[trial_id]
        if record.state is not TrialState.COMPLETE:
            continue
        best = best_measurement(record.measurements, objective)
        assert best is not None, "a COMPLETE run has measurements"
        scores: list[tuple[str, Mapping[str, float]]] = [("validation", best.metrics)]
        if trial_id in state.tested:
            scores.append(("test", state.tested[trial_id].metrics))
        configs = (record.spec.config, "default") if record.spec.model in both else (record.spec.config,)
        rows.extend(
            {
                "model": record.spec.model,
                "config": config,
                "seed": record.spec.seed,
                "split": split,
                "metric": metric,
                "value": value,
                # A run that counts for both configurations was trained once: its time stands with one of them.
                "elapsed_seconds": record.elapsed_seconds if config == record.spec.config else 0.0,
                "split_seed": record.spec.split_seed,
            }
            for config in configs
            for split, metrics in scores
            for metric, value in metrics.items()
        )
    redrawn = any(row["split_seed"] is not None for row in rows)
    return make_table(rows, CONFIRMATIONS + [("split_seed", pa.int64())] * redrawn)


def make_table(rows: list[dict[str, Any]], fields: list[tuple[str, pa.DataType]]) -> pa.Table:
    """Return rows as a table with these columns; a key that a row lacks is null."""
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a result table, stamped with its schema's version; readers see the old file or the new one."""
    stamped = table.replace_schema_metadata({"sweeper_schema": str(SCHEMA)})
    replace_file(path, lambda partial: pq.write_table(stamped, partial, compression="zstd"))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one result table, or some of its columns.

    Raises
    ------
    InputError
        When it is missing, is no Parquet file, or was written by another schema.
    """
    try:
        table = pq.read_table(path, columns=None if columns is None else list(columns))
    except FileNotFoundError:
        remedy = "name the folder of a study that has run"
        raise InputError(Problem(str(path), "a result folder must hold this table", "no such file", remedy)) from None
    except (pa.ArrowInvalid, OSError) as error:
        remedy = "rebuild it with `sweeper resume`"
        raise InputError(Problem(str(path), "must be a Parquet file", str(error)[:80], remedy)) from None
    schema = (table.schema.metadata or {}).get(b"sweeper_schema", b"1").decode()
    if schema != str(SCHEMA):
        remedy = "use the version of sweeper that wrote it"
        raise InputError(Problem(str(path), f"schema must be {SCHEMA}", schema, remedy))
    return table


def column_type(values: Iterable[Any]) -> pa.DataType:
    """Return the narrowest common type of a hyperparameter's values; mixed ones become text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool}:
        return pa.bool_()
    if kinds <= {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def _as(value: Any, kind: pa.DataType) -> Any:
    return str(value) if value is not None and kind == pa.string() else value


def _utc(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
