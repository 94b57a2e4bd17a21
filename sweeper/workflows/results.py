"""A finished (or interrupted) study as Python objects."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sweeper.store.manifest import Manifest, read_manifest
from sweeper.store.paths import ResultPaths
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


def load_results(path: str | Path) -> StudyResult:
    """Load a result folder; needs neither Ray nor torch.

    Raises
    ------
    InputError
        When it is no result folder, or one of its files is damaged.
    """
    paths = ResultPaths(Path(path))
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
