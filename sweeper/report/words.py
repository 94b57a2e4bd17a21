"""The report in words, made from what was done: the sentence that can be quoted, what was unequal, what to look at."""

from __future__ import annotations

from typing import Any

from sweeper.core.space import Float
from sweeper.core.trial import TrialState
from sweeper.report.effects import flips, tuning_effects
from sweeper.report.source import Source


def summary(source: Source, entries: list[dict[str, Any]]) -> str:
    """Return the sentences that can be quoted."""
    if source.imported and not source.scores:
        return _imported_summary(source, entries)
    confirmed = [entry for entry in entries if entry["tuned"]["mean"] is not None]
    if not confirmed:
        return "No model has been confirmed on the test split yet: nothing can be claimed."
    first, metric = confirmed[0], source.objective.metric
    scores = first["tuned"]
    interval = ""
    if scores["ci_low"] is not None:
        interval = f" (95% interval {scores['ci_low']:.4f} to {scores['ci_high']:.4f})"
    text = (
        f"{first['model']} has the best mean test {metric} at its tuned best: {scores['mean']:.4f}{interval} over "
        f"{count(len(scores['seeds']), 'fresh seed')}. "
    )
    return text + _claims(source, first["verdicts"])


def points(source: Source, curves: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a reader should know beside the ranking: ``text``, and ``warn`` where it weakens the claims."""
    unequal = [f"{row['model']} {row['unequal']}" for row in effort(source) if row["unequal"]]
    found = [{"text": f"Unequal effort: {'; '.join(unequal)}.", "warn": True}] if unequal else []
    effects = tuning_effects(source)
    for words, text in (
        ("tuning helps", "Tuning improves on the default of {}."),
        ("tuning hurts", "Tuning is worse than the default on test for {}."),
        ("not established", "That tuning changes anything is not established for {}."),
        ("the default won the search", "The default configuration won the search of {}."),
    ):
        models = [effect.model for effect in effects if effect.words == words]
        if models:
            found.append({"text": text.format(listed(models)), "warn": words == "tuning hurts"})
    found += [{"text": line, "warn": False} for line in flips(source)]
    if source.imported:
        found += [{"text": line, "warn": False} for line in curves["sentences"][: 3 if curves["leads_test"] else 2]]
    else:
        found += [{"text": line, "warn": False} for line in curves["sentences"] if line.startswith("Crossing")]
    if len(source.manifest.test_openings) > 1:
        found.append({"text": "Seeds were added after a first look at the test scores.", "warn": True})
    if source.imported:
        text = "Imported trials: no fresh seeds, no sealed test split; see the scope."
        found.append({"text": text, "warn": True})
    elif source.scores:
        varied = "seeds and redrawn splits" if "split" in source.manifest.content["confirm"]["vary"] else "seeds"
        text = f"The claim holds over fresh {varied}, for these checkpoints, spaces, budget and data; see its scope."
        found.append({"text": text, "warn": False})
    return found


def listed(names: list[str]) -> str:
    """Return ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def verdict_rows(source: Source, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the verdict of each pair once, the better model first; ``needs`` is what a claim would need."""
    rank = {entry["model"]: entry["rank"] for entry in entries}
    rows = []
    for entry in entries:
        for verdict in entry["verdicts"]:
            if entry["rank"] > rank[verdict["other"]]:
                continue
            more = verdict["more_seeds"]
            needs = ""
            if verdict["verdict"] == "undecided against":
                needs = f"about {count(more, 'more seed')}" if more else "no feasible number of seeds would tell"
            if verdict["verdict"] == "ties with":
                needs = f"within {source.delta:g}"
            rows.append({**verdict, "model": entry["model"], "needs": needs})
    return rows


def _claims(source: Source, verdicts: list[dict[str, Any]]) -> str:
    """Return what the best model's verdicts come to, those of one kind together."""
    if not verdicts:
        return "There is no other model to compare it with."
    parts = []
    for kind, text in (("beats", "it beats {}"), ("loses to", "it loses to {}"), ("ties with", "it ties with {}")):
        mine = [verdict for verdict in verdicts if verdict["verdict"] == kind]
        if not mine:
            continue
        reason = f"p = {max(verdict['p_value'] for verdict in mine):.2g} after Holm"
        if len(mine) > 1:
            reason = reason.replace("=", "≤", 1)
        if kind == "ties with":
            reason = f"within {source.delta:g}"
        parts.append(f"{text.format(listed([verdict['other'] for verdict in mine]))} ({reason})")
    for verdict in verdicts:
        if verdict["verdict"] == "undecided against":
            told = f"p = {verdict['p_value']:.2g}{more_seeds(verdict)}"
            parts.append(f"against {verdict['other']} the difference is not established ({told})")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def more_seeds(verdict: dict[str, Any]) -> str:
    """Return how many more seeds a claim would need, to be put after a comma; empty where nothing is known."""
    more = verdict["more_seeds"]
    return f", about {count(more, 'more seed')} would tell" if more else ""


def count(number: int, noun: str) -> str:
    """Return ``1 seed`` or ``2 seeds``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def device_seconds(trials: list[dict[str, Any]]) -> float | None:
    """Return the sum over trials; None where no trial knows its own, as most imported ones."""
    known = [trial["device_seconds"] for trial in trials if trial["device_seconds"] is not None]
    return sum(known) if known or not trials else None


def effort(source: Source) -> list[dict[str, Any]]:
    """Return one row a model: trials by state, epochs, device-seconds, and whether its effort equals the others'."""
    rows = []
    for model in source.models:
        trials = source.of(model)
        states = {state: sum(trial["state"] == state for trial in trials) for state in _FINAL}
        rows.append(
            {
                "model": model,
                "trials": sum(states.values()),
                **{state.lower(): count for state, count in states.items()},
                "epochs": sum(trial["epochs"] for trial in trials) or (None if source.imported else 0),
                "device_seconds": device_seconds(trials),
                "retries": sum(trial["num_retries"] for trial in trials),
            }
        )
    asked = source.manifest.content["search"]["num_trials"]
    for row in rows:
        row["unequal"] = _unequal(row, asked, source.manifest.search_ends.get(row["model"], ""))
    return rows


def _unequal(row: dict[str, Any], asked: int, ended: str) -> str:
    """Say in which way a model got less than the plan gave every model; empty where it did not.

    ``ended``: why its search ended early, empty where it did not.
    """
    found = []
    if row["trials"] != asked:
        found.append(f"{row['trials']} of {asked} trials" + (f" ({ended})" if ended else ""))
    if row["fail"]:
        found.append(f"{row['fail']} failed")
    if row["infeasible"]:
        found.append(f"{row['infeasible']} infeasible")
    return ", ".join(found)


def boundary_flags(source: Source) -> list[str]:
    """Return a line for every best value within 5% of an end of its range."""
    lines = []
    for entry in source.manifest.content["models"]:
        best = source.best(entry["name"])
        for name, parameter in entry["space"]["parameters"].items():
            value = best.get(f"params_{name}") if best else None
            end = _near_end(parameter, value)
            if end is not None:
                lines.append(
                    f"{entry['name']}: the best {name}, {value:.4g}, lies at the {end} end of its range; widen it"
                )
    return lines


def _imported_summary(source: Source, entries: list[dict[str, Any]]) -> str:
    metric = source.objective.metric
    count = sum(entry["num_trials"] for entry in entries)
    tested = [entry for entry in entries if entry["tuned"]["mean"] is not None]
    text = f"From {count} imported trials of {len(entries)} models, which were not confirmed with fresh seeds: "
    if tested:
        scores = ", ".join(f"{entry['model']} {entry['tuned']['mean']:.4f}" for entry in tested)
        text += f"the trial that validation chose scores on test {metric}: {scores}. "
        text += "One run each shows no difference that other seeds must repeat."
    else:
        text += f"there are validation scores ({metric}) only, so nothing can be claimed of other data."
    return text


_FINAL = [state.value for state in TrialState if state.is_final]


def _near_end(parameter: dict[str, Any], value: Any) -> str | None:
    if parameter["type"] == "categorical" or not isinstance(value, int | float):
        return None
    return Float(name="", low=parameter["low"], high=parameter["high"], log=parameter["log"]).boundary(value)
