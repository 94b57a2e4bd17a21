"""A finished (or interrupted) study as Python objects."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sweeper.store.logs import log_of
from sweeper.store.manifest import Manifest, read_manifest
from sweeper.store.paths import ResultPaths, replace_file
from sweeper.store.storage import LocalFolder
from sweeper.store.tables import read_tables


@dataclass(frozen=True)
class StudyResult:
    """The result folder of a study.

    Parameters
    ----------
    path:
        The folder.
    manifest:
        Plan, versions, fingerprints, test openings.
    trials, measurements, confirmations, predictions:
        Arrow tables with the columns of the contract.
    leaderboard:
        One entry a model by rank; empty before the confirmation.
    best_params:
        By model: the best configuration.
    """

    path: Path
    manifest: Manifest
    trials: pa.Table
    measurements: pa.Table
    confirmations: pa.Table
    predictions: pa.Table
    leaderboard: list[dict[str, Any]]
    best_params: dict[str, dict[str, Any]]


def readable(place: str | Path, *, with_best: bool = False) -> ResultPaths:
    """Return a result folder whose files can be read: itself, or a copy of what an object store holds by now.

    Parameters
    ----------
    place:
        A folder, or the URL of one.
    with_best:
        Whether ``best/`` with its checkpoints is wanted too.
    """
    paths = ResultPaths.at(place, purpose="readers")
    if not paths.url:
        return paths
    wanted = [paths.manifest, paths.study, *paths.tables, paths.report]
    if with_best:
        models = [model["name"] for model in read_manifest(paths).content.get("models", ())]
        wanted += [paths.best(model) / part for model in models for part in ("space.yaml", "config.yaml", "checkpoint")]
    for path in wanted:
        if not paths.storage.obtain(path):
            LocalFolder().remove(path)
    lines, _ = log_of(paths).read()
    paths.root.mkdir(parents=True, exist_ok=True)
    replace_file(paths.ledger, lambda partial: partial.write_bytes(b"".join(line + b"\n" for line in lines)))
    return paths


def load_results(path: str | Path) -> StudyResult:
    """Load a result folder, local or on an object store; needs neither Ray nor torch.

    Raises
    ------
    InputError
        When it is no result folder, or one of its files is damaged.
    """
    paths = readable(path)
    manifest = read_manifest(paths)
    tables = read_tables(paths)
    file = paths.report / "leaderboard.json"
    leaderboard = json.loads(file.read_text()) if file.is_file() else []
    return StudyResult(
        path=paths.root,
        manifest=manifest,
        trials=tables.trials,
        measurements=tables.measurements,
        confirmations=tables.confirmations,
        predictions=tables.predictions,
        leaderboard=leaderboard,
        best_params={entry["model"]: entry["best_params"] for entry in leaderboard},
    )
