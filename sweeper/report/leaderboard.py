"""The leaderboard: every model at its tuned best, ranked by its mean test score, with verdicts for every pair."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sweeper.report.source import CONFIGS, Source
from sweeper.stats import mean_interval, verdicts


def leaderboard(source: Source) -> list[dict[str, Any]]:
    """Return the entries of ``leaderboard.json`` by rank; models without a confirmed score come last."""
    comparisons = _verdicts(source)
    entries = []
    for model in source.models:
        trials = source.of(model)
        best = source.best(model)
        entries.append(
            {
                "model": model,
                "rank": 0,
                **{config: _scores(source, model, config) for config in CONFIGS},
                "best_params": json.loads(best["params"]) if best else {},
                "num_trials": sum(trial["finished_at"] is not None for trial in trials),
                "device_seconds": sum(trial["device_seconds"] or 0.0 for trial in trials),
                "verdicts": comparisons.get(model, []),
            }
        )

    def key(entry: dict[str, Any]) -> tuple[bool, float, str]:
        mean = entry["tuned"]["mean"]
        return mean is None, source.objective.loss(mean) if mean is not None else 0.0, entry["model"]

    entries.sort(key=key)
    for rank, entry in enumerate(entries, start=1):
        entry["rank"] = rank
    return entries


def _scores(source: Source, model: str, config: str) -> dict[str, Any]:
    by_seed = source.scores.get((model, config, "test"), {})
    if not by_seed:
        return {"mean": None, "ci_low": None, "ci_high": None, "scores": [], "seeds": []}
    interval = mean_interval(list(by_seed.values()))
    return {
        "mean": interval.mean,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "scores": list(by_seed.values()),
        "seeds": list(by_seed),
    }


def _verdicts(source: Source) -> dict[str, list[dict[str, Any]]]:
    """Compare the models over the seeds that all of them finished."""
    tuned = {m: source.scores[m, "tuned", "test"] for m in source.models if (m, "tuned", "test") in source.scores}
    common = set.intersection(*(set(scores) for scores in tuned.values())) if tuned else set()
    if len(tuned) < 2 or not common:
        return {}
    seeds = [seed for seed in source.manifest.seeds["confirmation"] if seed in common]
    paired = {model: [scores[seed] for seed in seeds] for model, scores in tuned.items()}
    found = verdicts(paired, maximize=source.objective.goal == "maximize")
    return {model: [asdict(verdict) for verdict in items] for model, items in found.items()}
