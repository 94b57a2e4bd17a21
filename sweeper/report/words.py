"""The report in words, made from what was done: the summary, the method, the scope of the claim, what was unequal."""

from __future__ import annotations

from typing import Any

from sweeper.core.space import Float
from sweeper.core.trial import TrialState
from sweeper.report.source import Source, majority_baseline


def summary(source: Source, entries: list[dict[str, Any]]) -> str:
    """Return the sentence that can be quoted."""
    if source.imported and not source.scores:
        return _imported_summary(source, entries)
    confirmed = [entry for entry in entries if entry["tuned"]["mean"] is not None]
    if not confirmed:
        return "No model has been confirmed on the test split yet: nothing can be claimed."
    first = confirmed[0]
    metric = source.objective.metric
    text = f"{first['model']} has the best mean test {metric} at its tuned best, {first['tuned']['mean']:.4f}"
    text += f" over {len(first['tuned']['seeds'])} fresh seeds. "
    claims = []
    for verdict in first["verdicts"]:
        if verdict["verdict"] == "beats":
            claims.append(f"it beats {verdict['other']} (p = {verdict['p_value']:.3g} after Holm)")
        elif verdict["verdict"] == "ties with":
            claims.append(f"it ties with {verdict['other']} within {source.delta:g}")
        else:
            count = verdict["more_seeds"]
            more = f", about {count} more {'seed' if count == 1 else 'seeds'} would tell" if count else ""
            claims.append(f"against {verdict['other']} the difference is not established{more}")
    return text + ("; ".join(claims).capitalize() + "." if claims else "There is no other model to compare it with.")


def method(source: Source) -> list[str]:
    """Return paragraphs on what was done and what the claim covers."""
    if source.imported:
        return _imported_method(source)
    content, manifest = source.manifest.content, source.manifest
    search, seeds = content["search"], manifest.seeds["confirmation"]
    counts = {split: sum(classes.values()) for split, classes in manifest.data["counts"].items()}
    stopping = search["scheduler"]
    pruning = "No trial was stopped early."
    if stopping["type"] in _STOPPING:
        pruning = (
            f"Trials were stopped early by {_STOPPING[stopping['type']]} (reduction factor "
            f"{stopping['reduction_factor']}, first rung after {stopping['grace_fraction']:.0%} of the epochs), "
            "rungs kept per model. A trial was judged only after its warm-up and its last unfreezing event."
        )
    openings = "; ".join(
        f"{opening['at']} for {opening['num_runs']} runs ({opening['reason']})" for opening in manifest.test_openings
    )
    searched = (
        f"Each of {len(source.models)} models was tuned separately with {search['num_trials']} trials of at most "
        f"{search['max_epochs']} epochs (sampler {search['sampler']}); trial 0 is its default configuration. {pruning}"
    )
    confirmed = (
        f"The best trial of each model was chosen by validation {source.objective.metric} ({source.objective.goal}) "
        f"alone. It and the default were then trained anew with {len(seeds)} seeds that the search never used, the "
        "same for all models, the epoch again chosen on validation, and scored on the test split."
    )
    data = (
        f"Data: train {counts['train']}, validation {counts['validation']}, test {counts['test']} examples, "
        f"fingerprint {manifest.data['fingerprint'][:12]}. The test split was opened {len(manifest.test_openings)} "
        f"time(s): {openings or 'never'}."
    )
    added = ""
    if len(manifest.test_openings) > 1:
        added = "Seeds were added after a first look at the test scores, so false claims are likelier than 5%. "
    if source.delta:
        added += f"Two models tie where two one-sided tests say that they differ by less than {source.delta:g}. "
    scope = (
        "Intervals are Student's t over seeds (95%). Verdicts are exact sign-flip tests on paired seeds, "
        f"Holm-adjusted over all pairs. {added}Varied: {', '.join(content['confirm']['vary'])}. The claim covers these "
        "checkpoints, this data, these search spaces and this budget; it says nothing of other splits unless `split` "
        "was varied."
    )
    versions = "Versions: " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()) + "."
    lines = [searched, confirmed, data, scope, versions]
    baseline = majority_baseline(source)
    if baseline is not None:
        lines.append(
            f"Trivial baseline: always answering {baseline[0]!r} is right on {baseline[1]:.4f} of the test split."
        )
    return lines + [f"Note: {note}" for note in manifest.notes] + [f"Accepted: {c}" for c in manifest.accepted_changes]


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
                "epochs": sum(trial["epochs"] for trial in trials),
                "device_seconds": sum(trial["device_seconds"] or 0.0 for trial in trials),
                "retries": sum(trial["num_retries"] for trial in trials),
            }
        )
    asked = source.manifest.content["search"]["num_trials"]
    for row in rows:
        row["unequal"] = row["trials"] != asked or row["fail"] + row["infeasible"] > 0
    return rows


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


def _imported_method(source: Source) -> list[str]:
    """Return what was imported and, one by one, what cannot be claimed from it."""
    imported = source.imported or {}
    columns = ", ".join(f"{name} from {column!r}" for name, column in imported["columns"].items())
    lines = [
        (
            f"Imported from {imported['source']} (as {imported['format']}, SHA-256 {imported['sha256'][:12]}); sweeper "
            f"did not run these trials. Columns: {columns}. Metric: {source.objective.metric}, {source.objective.goal}."
        ),
        (
            "What cannot be claimed: the search may not have been independent draws (tuning curves and bands hold for "
            "those only), nor equal in space and budget between the models; early stopping, retries and choices made "
            "by hand are not known."
        ),
    ]
    if source.scores:
        lines.append(
            "Confirmation runs were imported with their seeds; that the search never used these seeds is not known. "
            "Intervals are Student's t over them (95%), verdicts exact sign-flip tests, Holm-adjusted over all pairs."
        )
    else:
        lines.append(
            "No fresh seeds: each model stands for one run of its best trial, chosen among many; its scores flatter."
        )
    lines.append(
        "The test split was not sealed: whoever made the table could see test scores while tuning. The data are not "
        "known here (no fingerprint), so splits cannot be checked for equality or leakage."
    )
    versions = ", ".join(f"{name} {version}" for name, version in source.manifest.versions.items())
    lines.append(f"Versions that read it: {versions}.")
    return lines + [f"Note: {note}" for note in source.manifest.notes]


_STOPPING = {
    "asha": "asynchronous successive halving, the stopping variant",
    "asha-promotion": "asynchronous successive halving, the promotion variant",
    "hyperband": "asynchronous Hyperband",
    "median": "the median rule",
}
_FINAL = [state.value for state in TrialState if state.is_final]


def _near_end(parameter: dict[str, Any], value: Any) -> str | None:
    if parameter["type"] == "categorical" or not isinstance(value, int | float):
        return None
    return Float(name="", low=parameter["low"], high=parameter["high"], log=parameter["log"]).boundary(value)
