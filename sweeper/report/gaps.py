"""Validation against test: how much the choice by validation flatters, and overtuning where it may be computed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sweeper.report.source import CONFIGS, Source
from sweeper.stats import overtuning


def gaps(source: Source) -> list[dict[str, Any]]:
    """Return a row for each model and configuration that has both scores; signs say how much better validation looks.

    ``search`` is the chosen trial's validation score; ``validation`` and ``test`` are means over the confirmation
    seeds; ``optimism`` is how much better ``search`` looks than ``validation``, and ``gap`` how much better
    ``validation`` looks than ``test``. For imported trials with test scores, which were not sealed: the chosen trial's
    own scores and its overtuning (Schneider et al. 2025), which a sealed test split forbids to compute.
    """
    sign = 1.0 if source.objective.goal == "maximize" else -1.0
    rows = []
    for model in source.models:
        best = source.best(model)
        for config in CONFIGS:
            validation, test = (source.scores.get((model, config, split), {}) for split in ("validation", "test"))
            seeds = [seed for seed in test if seed in validation]
            if not seeds:
                continue
            means = [float(np.mean([scores[seed] for seed in seeds])) for scores in (validation, test)]
            search = best["value"] if best is not None and config == "tuned" else None
            rows.append(_row(model, config, search, means[0], means[1], sign))
        if source.imported and best is not None and best.get("test_value") is not None:
            row = _row(model, "chosen trial", best["value"], best["value"], best["test_value"], sign)
            trials = [trial for trial in source.complete(model) if trial.get("test_value") is not None]
            absolute, relative = overtuning(
                [trial["value"] for trial in trials], [t["test_value"] for t in trials], source.objective.goal
            )
            row["overtuning"] = absolute
            row["relative_overtuning"] = None if math.isnan(relative) else relative
            row["optimism"] = None
            rows.append(row)
    return rows


def _row(model: str, config: str, search: float | None, validation: float, test: float, sign: float) -> dict[str, Any]:
    return {
        "model": model,
        "config": config,
        "search": search,
        "validation": validation,
        "test": test,
        "optimism": None if search is None else sign * (search - validation),
        "gap": sign * (validation - test),
        "overtuning": None,
        "relative_overtuning": None,
    }
