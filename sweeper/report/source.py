"""What a report is made of: the tables of a result folder as plain rows, grouped by model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.core.objective import Objective
from sweeper.core.trial import TrialState
from sweeper.store.manifest import Manifest, read_manifest
from sweeper.store.paths import ResultPaths
from sweeper.store.tables import read_tables

CONFIGS = ("tuned", "default")


@dataclass(frozen=True)
class Source:
    """A result folder, read.

    ``trials`` and ``measurements`` are rows as dictionaries; ``scores[model, config, split][seed]`` holds the
    objective's metric of each confirmation run.
    """

    paths: ResultPaths
    manifest: Manifest
    objective: Objective
    models: tuple[str, ...]
    trials: list[dict[str, Any]]
    measurements: list[dict[str, Any]]
    scores: dict[tuple[str, str, str], dict[int, float]]

    def of(self, model: str) -> list[dict[str, Any]]:
        """The search trials of one model, by number."""
        return [trial for trial in self.trials if trial["model"] == model]

    def complete(self, model: str) -> list[dict[str, Any]]:
        """The COMPLETE search trials of one model, by number."""
        return [trial for trial in self.of(model) if trial["state"] == TrialState.COMPLETE]

    @property
    def imported(self) -> dict[str, Any] | None:
        """Where the trials were imported from, and which column became what; None for a study that sweeper ran."""
        return self.manifest.imported or None

    @property
    def delta(self) -> float | None:
        """Differences within it count as a tie, in units of the metric; None: the study names none."""
        delta: float | None = self.manifest.content.get("confirm", {}).get("delta")
        return delta

    def best(self, model: str) -> dict[str, Any] | None:
        """The best COMPLETE trial by validation; ties go to the lower number."""
        return min(self.complete(model), key=lambda t: (self.objective.loss(t["value"]), t["number"]), default=None)


def read_source(root: Path) -> Source:
    """Read a result folder.

    Raises
    ------
    InputError
        When it is none, or one of its files is damaged.
    """
    paths = ResultPaths(root)
    manifest = read_manifest(paths)
    tables = read_tables(paths)
    objective = Objective(**manifest.content["objective"])
    scores: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in tables.confirmations.to_pylist():
        if row["metric"] == objective.metric:
            scores.setdefault((row["model"], row["config"], row["split"]), {})[row["seed"]] = row["value"]
    return Source(
        paths=paths,
        manifest=manifest,
        objective=objective,
        models=tuple(entry["name"] for entry in manifest.content["models"]),
        trials=sorted(tables.trials.to_pylist(), key=lambda t: (t["model"], t["number"])),
        measurements=tables.measurements.to_pylist(),
        scores=scores,
    )


def majority_baseline(source: Source) -> tuple[str, float] | None:
    """Return the most frequent training class and its share of the test split: what a constant guess scores."""
    counts = source.manifest.data["counts"]
    if not counts.get("train") or "" in counts["train"]:  # numbers and texts have no classes
        return None
    label = max(counts["train"], key=counts["train"].get)
    total = sum(counts["test"].values())
    return (label, counts["test"][label] / total) if total else None
