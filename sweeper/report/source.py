"""What a report is made of: the tables of a result folder as plain rows, grouped by model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sweeper.core.objective import Objective
from sweeper.core.trial import TrialState
from sweeper.store.manifest import Manifest, read_manifest
from sweeper.store.paths import ResultPaths
from sweeper.store.tables import read_table

CONFIGS = ("tuned", "default")


@dataclass(frozen=True)
class Source:
    """A result folder, read.

    ``trials`` and ``measurements`` are rows as dictionaries; ``scores[model, config, split][seed]`` holds the
    objective's metric of each confirmation run, ``seconds[model, config][seed]`` how long its training took.
    """

    paths: ResultPaths
    manifest: Manifest
    objective: Objective
    models: tuple[str, ...]
    trials: list[dict[str, Any]]
    measurements: list[dict[str, Any]]
    scores: dict[tuple[str, str, str], dict[int, float]]
    seconds: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)

    @cached_property
    def _by_model(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {model: [] for model in self.models}
        for trial in self.trials:
            found.setdefault(trial["model"], []).append(trial)
        return found

    def of(self, model: str) -> list[dict[str, Any]]:
        """The search trials of one model, by number."""
        return self._by_model[model]

    def space(self, model: str) -> dict[str, Any]:
        """A model's search space as the manifest holds it: ``parameters``, ``default``, ``source``."""
        entry: dict[str, Any] = next(e for e in self.manifest.content["models"] if e["name"] == model)
        return dict(entry["space"])

    @property
    def sign(self) -> float:
        """1 where more of the metric is better, else -1."""
        return 1.0 if self.objective.goal == "maximize" else -1.0

    @property
    def num_workers(self) -> int:
        """Devices of a lane: device-seconds are elapsed seconds times this."""
        return int(self.manifest.content.get("training", {}).get("num_workers", 1))

    @property
    def node_labels(self) -> dict[str, dict[str, str]]:
        """The labels of the nodes that each model asked for, where models asked for different ones; else empty."""
        labels: dict[str, dict[str, str]] = self.manifest.machine.get("node_labels", {})
        return labels if len({tuple(sorted(asked.items())) for asked in labels.values()}) > 1 else {}

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
        """The best COMPLETE trial by validation, by the rule of `core.selection.best_trial`: the one that is confirmed.

        Ties go to the lower validation loss at the best epoch, where it is known, then to the lower number.
        """

        def key(trial: dict[str, Any]) -> tuple[float, float, int]:
            tied = self._validation_losses.get((trial["trial_id"], trial["best_epoch"]))
            return self.objective.loss(trial["value"]), tied or 0.0, trial["number"]

        return min(self.complete(model), key=key, default=None)

    @cached_property
    def _validation_losses(self) -> dict[tuple[str, int], float | None]:
        return {(row["trial_id"], row["epoch"]): row["validation_loss"] for row in self.measurements}


def read_source(root: Path) -> Source:
    """Read a result folder.

    Raises
    ------
    InputError
        When it is none, or one of its files is damaged.
    """
    paths = ResultPaths(root)
    manifest = read_manifest(paths)
    trials, measurements, confirmations = (
        read_table(path) for path in (paths.trials, paths.measurements, paths.confirmations)
    )
    objective = Objective(**manifest.content["objective"])
    scores: dict[tuple[str, str, str], dict[int, float]] = {}
    seconds: dict[tuple[str, str], dict[int, float]] = {}
    for row in confirmations.to_pylist():
        if row["metric"] == objective.metric:
            scores.setdefault((row["model"], row["config"], row["split"]), {})[row["seed"]] = row["value"]
            if row["elapsed_seconds"] is not None:
                seconds.setdefault((row["model"], row["config"]), {})[row["seed"]] = row["elapsed_seconds"]
    return Source(
        paths=paths,
        manifest=manifest,
        objective=objective,
        models=tuple(entry["name"] for entry in manifest.content["models"]),
        trials=sorted(trials.to_pylist(), key=lambda t: (t["model"], t["number"])),
        measurements=measurements.to_pylist(),
        scores=scores,
        seconds=seconds,
    )


def trivial_baseline(source: Source) -> str:
    """Say what the trivial answer scores on the test split: majority class, mean, or mean box; empty where unknown."""
    scores, counts = source.manifest.data.get("trivial", {}), source.manifest.data["counts"]
    metric = source.objective.metric
    classes = counts.get("train", {})
    answer = "the trivial answer, learnt from the training targets alone,"
    if classes and "" not in classes:  # numbers, texts and boxes have no classes
        answer = f"always answering {max(classes, key=classes.get)!r}"
    if scores:
        named = {name: scores[name] for name in (metric, *sorted(scores)) if name in scores}
        return f"Trivial baseline: {answer} scores " + ", ".join(f"{k} {v:.4f}" for k, v in list(named.items())[:4])
    total = sum(counts.get("test", {}).values())
    if classes and "" not in classes and total:
        return f"Trivial baseline: {answer} is right on {counts['test'][max(classes, key=classes.get)] / total:.4f}"
    return ""
