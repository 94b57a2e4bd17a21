"""Are the verdicts right as often as they say? Simulated studies with known truth.

    python benchmarks/verdicts.py [--json OUT.json] [--studies 1000] [--seconds 400]

With --seconds no further part begins after so long; the same call goes on where OUT.json stands.

- family-wise error: studies of four equal models; the share with any wrong `beats` must be at most 5%;
- power: two models whose scores differ by one standard deviation of their paired differences, 10 seeds, against the
  noncentral t distribution;
- coverage of the 95% intervals, and of the band of tuning curves;
- `about N more seeds`: its median over undecided studies divided by the truth, which is the pairs that 80% power needs
  at the true effect, less those at hand.

Scores of a study share each seed's effect over the models, as runs with the same data order do.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import facts

from sweeper import stats

SEEDS = 10
EFFECTS = (0.4, 0.5, 0.6, 0.7)
NOISE: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Any]] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "skewed": lambda rng, size: 1 - rng.exponential(size=size),  # a few seeds fail badly
    "heavy-tailed": lambda rng, size: rng.standard_t(3, size=size) / np.sqrt(3),
    "unequal": lambda rng, size: rng.normal(size=size) * np.linspace(0.5, 2, size[0])[:, None],  # spread by model
}


def studies(rng: np.random.Generator, count: int, num_models: int, noise: str) -> Any:
    """Yield ``count`` studies of equal models: (models, seeds) accuracies around .8."""
    for _ in range(count):
        shared = rng.normal(size=(1, SEEDS))
        yield 0.8 + 0.01 * (shared + NOISE[noise](rng, (num_models, SEEDS)))


def family_wise(rng: np.random.Generator, count: int, noise: str) -> float:
    """Return the share of studies with any wrong `beats`."""
    wrong = sum(
        any(v.verdict == "beats" for items in stats.verdicts(dict(enumerate(study))).values() for v in items)
        for study in studies(rng, count, 4, noise)
    )
    return wrong / count


def ties(rng: np.random.Generator, count: int) -> float:
    """Return the share of studies of four models with a wrong tie: neighbours differ by exactly delta."""
    offsets = 0.01 * np.arange(4)[:, None]
    wrong = 0
    for study in studies(rng, count, 4, "normal"):
        found = stats.verdicts(dict(enumerate(study + offsets)), delta=0.01)
        wrong += any(v.verdict == "ties with" for items in found.values() for v in items)
    return wrong / count


def power(rng: np.random.Generator, count: int) -> dict[str, float]:
    differences = rng.normal(1.0, 1.0, size=(count, SEEDS))
    zero = np.zeros(SEEDS)
    hits = sum(stats.verdicts({"a": d, "b": zero})["a"][0].verdict == "beats" for d in differences)
    return {"measured": hits / count, "theory": stats.power(1.0, SEEDS)}


def coverage(rng: np.random.Generator, count: int) -> dict[str, float]:
    hits: dict[str, int] = {}

    def note(name: str, low: float | None, high: float | None, truth: float) -> None:
        assert low is not None
        assert high is not None
        hits[name] = hits.get(name, 0) + (low <= truth <= high)

    for index in range(count):
        scores = rng.normal(0.8, 0.01, size=SEEDS)
        interval = stats.mean_interval(scores)
        note("mean over seeds", interval.low, interval.high, 0.8)
        verdict = stats.verdicts({"a": scores, "b": rng.normal(0.79, 0.02, size=SEEDS)})["a"][0]
        note("difference over seeds", verdict.ci_low, verdict.ci_high, 0.01)
        unpaired = stats.welch_interval(scores, rng.normal(0.79, 0.03, size=6))
        note("difference between studies", unpaired.low, unpaired.high, 0.01)
        easy = rng.random(500)
        a, b = rng.random(500) < 0.25 + 0.7 * easy, rng.random(500) < 0.2 + 0.7 * easy
        paired = stats.example_bootstrap(a, b, seed=index)
        note("difference over test examples", paired.ci_low, paired.ci_high, 0.05)
    return {name: hit / count for name, hit in hits.items()}


def coverage_over_tasks(rng: np.random.Generator, count: int) -> float:
    """Return the coverage of the stratified bootstrap of a mean; a study costs 2,000 resamples."""
    hits = 0
    for index in range(count // 5):
        runs = rng.normal(np.arange(5) / 10, 0.1, size=(20, 5))
        found = stats.stratified_bootstrap(runs, lambda matrix: float(matrix.mean()), seed=index)
        hits += found.low <= 0.2 <= found.high  # type: ignore[operator]
    return hits / (count // 5)


def coverage_of_bands(rng: np.random.Generator, count: int) -> float:
    """Return how often a tuning curve's band holds at all budgets at once."""
    n = np.arange(1, 65)
    truth = 0.5 ** (1 / n)  # the median of the best of n uniform draws
    bands = (stats.tuning_curve_band(rng.random(64), 0.95, n, "exact") for _ in range(count))
    return float(np.mean([((low <= truth) & (truth <= high)).all() for low, _, high in bands]))


def more_seeds(rng: np.random.Generator, count: int, effect: float) -> list[dict[str, Any]]:
    rows = []
    truth = stats.pairs_needed(effect)
    assert truth is not None
    for at_hand in (6, 8, 10):
        said = []
        for _ in range(count):
            study = {"a": rng.normal(effect, 1, size=at_hand), "b": np.zeros(at_hand)}
            verdict = stats.verdicts(study)["a"][0]
            if verdict.verdict == "undecided against":
                said.append(np.inf if verdict.more_seeds is None else verdict.more_seeds)
        median = float(np.median(said))
        left = truth - at_hand
        rows.append(
            {"effect": effect, "seeds": at_hand, "undecided": len(said) / count, "truly_more": left}
            | {"median_said": median, "ratio": median / left}
        )
    return rows


def parts(count: int) -> dict[str, Callable[[np.random.Generator], Any]]:
    """Return the parts by name; each draws from its own stream."""
    return {
        "wrong_beats normal": lambda rng: family_wise(rng, count, "normal"),
        "power": lambda rng: power(rng, 5 * count),
        "wrong_ties": lambda rng: ties(rng, count),
        "coverage": lambda rng: coverage(rng, count),
        "coverage_over_tasks": lambda rng: coverage_over_tasks(rng, count),
        "coverage_of_bands": lambda rng: coverage_of_bands(rng, count),
        **{f"more_seeds {e}": partial(more_seeds, count=count // 2, effect=e) for e in EFFECTS},
        **{f"wrong_beats {n}": partial(family_wise, count=4 * count, noise=n) for n in NOISE if n != "normal"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no part after so long")
    arguments = parser.parse_args()
    begun, count = time.perf_counter(), arguments.studies
    work = parts(count)
    setting = {"studies": count, "seed": arguments.seed}
    known: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        before = json.loads(arguments.json.read_text())
        if {key: before.get(key) for key in setting} == setting:
            known = before["parts"]
    for stream, (name, part) in enumerate(work.items()):
        if name in known or time.perf_counter() - begun > arguments.seconds:
            continue
        known[name] = part(np.random.default_rng([arguments.seed, stream]))
        print(f"{name}: {known[name] if isinstance(known[name], float) else 'done'}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps({**setting, "parts": known}, indent=2) + "\n")
    if len(known) < len(work):
        print(f"{len(work) - len(known)} parts are left: call it again")
        return
    found: dict[str, Any] = {
        "wrong_beats": {noise: known[f"wrong_beats {noise}"] for noise in NOISE},
        "wrong_ties": known["wrong_ties"],
        "power": known["power"],
        "coverage": {
            **known["coverage"],
            "mean over runs x tasks (20 runs)": known["coverage_over_tasks"],
            "tuning curve, all budgets at once": known["coverage_of_bands"],
        },
        "more_seeds": [row for effect in EFFECTS for row in known[f"more_seeds {effect}"]],
    }
    ratios = [row["ratio"] for row in found["more_seeds"]]
    median = float(np.median(ratios))
    found["more_seeds_median_ratio"] = median
    chance = 2 * np.sqrt(0.05 * 0.95 / (4 * count))  # two standard errors of a share of 5%
    seeds_and_examples = [share for name, share in found["coverage"].items() if "all budgets" not in name]
    found["passed"] = {
        "wrong beats at most 5%": found["wrong_beats"]["normal"] <= 0.05,
        "wrong beats under other noise at most 5% + 2 standard errors": max(found["wrong_beats"].values())
        <= 0.05 + chance,
        "power within 5 points": abs(found["power"]["measured"] - found["power"]["theory"]) <= 0.05,
        "coverage 93 to 97%": all(0.93 <= share <= 0.97 for share in seeds_and_examples),
        "tuning-curve band at least 93%": found["coverage"]["tuning curve, all budgets at once"] >= 0.93,
        "more seeds within 1.5 in the median": 1 / 1.5 <= median <= 1.5,
    }
    found["passed"] = {name: bool(passed) for name, passed in found["passed"].items()}
    for name, share in found["wrong_beats"].items():
        print(f"wrong beats, 4 equal models, {SEEDS} seeds, {name}: {share:.1%}")
    print(f"wrong ties, 4 models exactly delta apart: {found['wrong_ties']:.1%}")
    print(f"power: {found['power']['measured']:.1%}, theory {found['power']['theory']:.1%}")
    for name, share in found["coverage"].items():
        print(f"coverage, {name}: {share:.1%}")
    for row in found["more_seeds"]:
        print("more seeds:", ", ".join(f"{key} {value:.3g}" for key, value in row.items()))
    print(f"more seeds, median ratio: {median:.2f}")
    for name, passed in found["passed"].items():
        print(f"{'pass' if passed else 'FAIL'}: {name}")
    found |= {**setting, "parts": known, "machine": facts()}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
