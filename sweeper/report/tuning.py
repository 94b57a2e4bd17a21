"""Tuning curves: the best validation score expected from n trials, its bands, and the budgets where models change lead.

What is computed here is ``report/tuning_curves.json``, in the metric's own direction and units.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeper.core.trial import TrialState
from sweeper.report.source import Source
from sweeper.stats import Lead, expected_best, expected_selected, leads, tuning_curve_band

CONFIDENCE = 0.95
_EVERY_BUDGET = 1_000  # up to so many trials a curve has a point for each number


def tuning_curves(source: Source) -> dict[str, Any]:
    """Return the content of ``report/tuning_curves.json``.

    By model: the numbers of trials ``n``, ``expected_best`` (``v``: Dodge et al. 2019; ``u``: Tang et al. 2020), the
    ``band`` of the median best score (exact for independent draws; None where unbounded), ``expected_test`` of the
    validation-chosen trial where trials have test scores. Then ``winner`` and ``leads`` at budgets that all models have
    completed, by V (``leads_test``: by ``expected_test``, empty without it), ``sentences`` that name them, and
    ``caveats``.
    """
    sign = source.sign
    complete = {model: source.complete(model) for model in source.models}
    scores = {
        model: sign * np.array([trial["value"] for trial in trials], dtype=np.float64)
        for model, trials in complete.items()
        if trials
    }
    found: dict[str, Any] = {
        "metric": source.objective.metric,
        "goal": source.objective.goal,
        "confidence": CONFIDENCE,
        "models": {model: _model(source, model, scores[model], sign) for model in scores},
        "winner": None,
        "leads": [],
        "leads_u": [],
        "leads_test": [],
        "caveats": caveats(source),
    }
    if scores:
        common = min(len(values) for values in scores.values())
        n = budgets(common)
        curves = {model: expected_best(values, n) for model, values in scores.items()}
        unbiased = {model: expected_best(values, n, "u") for model, values in scores.items()}
        by_v = leads(curves, n)
        ahead = by_v[-1].model
        found["winner"] = {
            "model": ahead,
            "num_trials": common,
            "expected_best": sign * float(curves[ahead][-1]),
            "others": {model: sign * float(curve[-1]) for model, curve in curves.items() if model != ahead},
            "ahead_by_band": {m: _separated(found["models"], ahead, m, sign) for m in scores if m != ahead},
            "behind_by_band": {m: _separated(found["models"], m, ahead, sign) for m in scores if m != ahead},
        }
        found["leads"] = [asdict(lead) for lead in by_v]
        found["leads_u"] = [asdict(lead) for lead in leads(unbiased, n)]
        tests = {model: _tests(source, model) for model in scores}
        on_test = {m: expected_selected(scores[m], sign * test, n) for m, test in tests.items() if test is not None}
        said = []
        if len(on_test) == len(scores):
            by_test = leads(on_test, n)
            found["leads_test"] = [asdict(lead) for lead in by_test]
            last = {model: sign * float(curve[-1]) for model, curve in on_test.items()}
            said.append(_on_test(source, last, common, by_test))
        found["sentences"] = _sentences(source, found, by_v, said)
    else:
        found["sentences"] = ["No trial has completed: there is no tuning curve."]
    return found


def budgets(count: int) -> NDArray[np.int64]:
    """Return the numbers of trials at which a curve of ``count`` trials is computed, from 1 to ``count``."""
    if count <= _EVERY_BUDGET:
        return np.arange(1, count + 1)
    return np.unique(np.concatenate([np.arange(1, 201), np.geomspace(200, count, 400).round().astype(np.int64)]))


def caveats(source: Source) -> list[str]:
    """Return what keeps the curves from describing the search method rather than these trials."""
    search = source.manifest.content["search"]
    found = []
    if source.imported:
        found.append("The curves hold for independent draws (random search); how these trials were drawn is not known.")
    elif search["sampler"] != "random":
        found.append(
            f"The search was adaptive (sampler {search['sampler']}) and trial 0 is the default: the curves and bands "
            "describe these trials as if drawn in random order, not the search method."
        )
    left_out = {model: len(source.of(model)) - len(source.complete(model)) for model in source.models}
    if any(left_out.values()):
        counts = ", ".join(f"{model} {count}" for model, count in left_out.items() if count)
        found.append(
            f"Only completed trials enter the curves; pruned, failed or infeasible ones are left out: {counts}."
        )
    untested = {m: sum(t.get("test_value") is None for t in source.complete(m)) for m in source.models}
    if source.imported and any(untested[m] < len(source.complete(m)) for m in source.models) and any(untested.values()):
        counts = ", ".join(f"{model} {count}" for model, count in untested.items() if count)
        found.append(f"Completed trials without a test score, which keep a model without its curve on test: {counts}.")
    return found


def _model(source: Source, model: str, scores: NDArray[np.float64], sign: float) -> dict[str, Any]:
    n = budgets(len(scores))
    low, middle, high = tuning_curve_band(scores, CONFIDENCE, n)
    if sign < 0:
        low, high = high, low
    test = _tests(source, model)
    seconds = [trial["device_seconds"] or trial["elapsed_seconds"] or 0.0 for trial in source.of(model)]
    states = [trial["state"] for trial in source.of(model)]
    return {
        "num_trials": len(scores),
        "states": {state.value: states.count(state.value) for state in TrialState if states.count(state.value)},
        "n": n.tolist(),
        "expected_best": {
            "v": (sign * expected_best(scores, n)).tolist(),
            "u": (sign * expected_best(scores, n, "u")).tolist(),
        },
        "band": {
            "of": "median best score",
            "method": "exact",
            "low": _finite(sign * low),
            "median": _finite(sign * middle),
            "high": _finite(sign * high),
        },
        "expected_test": None if test is None else (sign * expected_selected(scores, sign * test, n)).tolist(),
        "seconds_per_trial": sum(seconds) / len(scores) if sum(seconds) else None,
    }


def _tests(source: Source, model: str) -> NDArray[np.float64] | None:
    """Return the test scores of a model's completed trials; None where one has none."""
    found = [trial.get("test_value") for trial in source.complete(model)]
    return None if any(value is None for value in found) else np.array(found, dtype=np.float64)


def _finite(values: NDArray[np.float64]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _separated(models: dict[str, Any], ahead: str, other: str, sign: float) -> list[int]:
    """Return the budgets at which the bands of two models do not overlap and ``ahead`` is the better one."""
    mine, theirs = models[ahead], models[other]
    near, far = ("low", "high") if sign > 0 else ("high", "low")
    limit = dict(zip(theirs["n"], theirs["band"][far], strict=True))
    pairs = zip(mine["n"], mine["band"][near], strict=True)
    return [n for n, bound in pairs if bound is not None and limit.get(n) is not None and sign * (bound - limit[n]) > 0]


def _sentences(source: Source, found: dict[str, Any], by_v: list[Lead], on_test: list[str]) -> list[str]:
    if len(found["models"]) < 2:
        return ["Only one model has completed trials: no other tuning curve to compare it with."]
    winner, metric = found["winner"], source.objective.metric
    others = ", ".join(f"{model} {value:.5g}" for model, value in winner["others"].items())
    lines = [
        (
            f"With {winner['num_trials']} trials each {winner['model']} has the best expected validation {metric}, "
            f"{winner['expected_best']:.5g} (against {others})."
        )
    ]
    lines += [_spans(by_v), *on_test]
    for model, at in winner["ahead_by_band"].items():
        lines.append(_apart(winner["model"], model, at))
    for model, at in winner["behind_by_band"].items():
        if at:
            lines.append(_apart(model, winner["model"], at))
    return lines


def _spans(found: list[Lead]) -> str:
    if len(found) == 1:
        return f"{found[0].model} leads at every budget from 1 to {found[0].last} trials: no curves cross."
    spans = [f"below {found[1].first} trials {found[0].model} leads"]
    spans += [f"from {lead.first} to {lead.last} trials {lead.model} leads" for lead in found[1:-1]]
    spans.append(f"from {found[-1].first} trials on {found[-1].model} leads")
    return f"Crossing budgets: {'; '.join(spans)}."


def _on_test(source: Source, scores: dict[str, float], count: int, by_test: list[Lead]) -> str:
    ahead = by_test[-1].model
    others = ", ".join(f"{model} {value:.5g}" for model, value in scores.items() if model != ahead)
    return (
        f"On test, the trial that validation chooses among {count} is expected to score best for {ahead}: "
        f"{source.objective.metric} {scores[ahead]:.5g} (against {others}). {_spans(by_test)}"
    )


def _apart(model: str, other: str, budgets: list[int]) -> str:
    if not budgets:
        return f"At no budget do the {CONFIDENCE:.0%} bands set {model} above {other}."
    spans = f"{budgets[0]} trials" if len(budgets) == 1 else f"budgets between {budgets[0]} and {budgets[-1]} trials"
    return f"The {CONFIDENCE:.0%} bands set {model} above {other} at {spans}."
