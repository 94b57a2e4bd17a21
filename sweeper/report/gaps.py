"""Validation against test: how much the choice by validation flatters, and overtuning where it may be computed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sweeper.report.source import CONFIGS, Source
from sweeper.stats import overtuning

OVERTUNING_NOTE = (
    "Overtuning (Schneider et al. 2025) is how much worse on test the last validation incumbent is than the best "
    "earlier one; a sealed test split allows it for the two incumbents that were confirmed with fresh seeds, the "
    "default and the tuned configuration, and forbids it for the trials between. Relative: divided by the progress "
    "since the first."
)


def gaps(source: Source) -> list[dict[str, Any]]:
    """Return a row for each model and configuration that has both scores; signs say how much better validation looks.

    ``search`` is the chosen trial's validation score; ``validation`` and ``test`` are means over the confirmation
    seeds; ``optimism`` is how much better ``search`` looks than ``validation``, and ``gap`` how much better
    ``validation`` looks than ``test``. Overtuning: see `OVERTUNING_NOTE`.
    """
    sign = source.sign
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
            row = _row(model, config, search, means[0], means[1], sign)
            if config == "tuned":
                row |= _confirmed_overtuning(source, model)
            rows.append(row)
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


def _confirmed_overtuning(source: Source, model: str) -> dict[str, float | None]:
    """Return the overtuning of the path from the default, the first incumbent, to the tuned configuration."""
    by_seed = [source.scores.get((model, config, "test"), {}) for config in ("default", "tuned")]
    common = [seed for seed in by_seed[0] if seed in by_seed[1]]
    if not common:
        return {}
    test = [float(np.mean([scores[seed] for seed in common])) for scores in by_seed]
    absolute, relative = overtuning([0.0, source.sign], test, source.objective.goal)  # tuned is the later incumbent
    return {"overtuning": absolute, "relative_overtuning": None if math.isnan(relative) else relative}


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
