"""The method in words, generated from what was done, and the scope of every claim."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sweeper.report.source import Source, trivial_baseline
from sweeper.report.words import count, listed
from sweeper.search.schedulers import make_stopping
from sweeper.spec.study import SchedulerSpec
from sweeper.stats.estimates import EXACT_PAIRS

_STOPPING = {
    "asha": "asynchronous successive halving, the stopping variant",
    "asha-promotion": "asynchronous successive halving, the promotion variant",
    "hyperband": "asynchronous Hyperband",
    "median": "the median rule",
}

Paragraph = tuple[str, str]
"""A heading and its text."""


def method(source: Source) -> list[Paragraph]:
    """Return paragraphs on what was done."""
    if source.imported:
        return _imported_method(source)
    lines = [
        ("Search", _search(source)),
        *_start(source),
        ("Confirmation", _confirmation(source)),
        ("Data", _data(source)),
    ]
    baseline = trivial_baseline(source)
    if baseline:
        lines.append(("Baseline", f"{baseline} on the test split."))
    lines += [
        ("Statistics", _statistics(source)),
        ("Checkpoints", _checkpoints(source)),
        ("Versions", _versions(source)),
    ]
    lines += [("Note", note) for note in source.manifest.notes]
    return lines + [("Accepted change", change) for change in source.manifest.accepted_changes]


def _start(source: Source) -> list[Paragraph]:
    """Say which trials did not come from the sampler, and what they had cost before."""
    content = source.manifest.content
    counts = {entry["name"]: len(entry["points"]) for entry in content["models"] if entry.get("points")}
    if not counts:
        return []
    text = f"After its default each model began with {count(max(counts.values()), 'configuration')} given to it."
    warm = content.get("warm_start")
    if warm:
        spent = "; ".join(
            f"{model}: {count(each['trials'], 'trial')}, {each['device_seconds']:.0f} device-seconds"
            for model, each in warm["models"].items()
        )
        text += (
            f" The best of them come from the earlier study {warm['name']} (plan {warm['plan_hash'][:12]}), which had "
            f"spent on them, to be added to this study's effort: {spent}."
        )
    return [("Start", text)]


def scope(source: Source) -> list[str]:
    """Return what the claims cover and what they do not, one by one."""
    if source.imported:
        return _imported_scope(source)
    content = source.manifest.content
    varied = "the random seed of training (initial head, order, dropout)"
    fixed = "It says nothing of other splits of the data: `confirm.vary: [seed, split]` would."
    if "split" in content["confirm"]["vary"]:
        varied += " and the split into train and validation, drawn anew for each seed"
        fixed = (
            "The test split was the same in all runs: it says nothing of other test sets beyond the example intervals."
        )
    spaces = "; ".join(f"{model}: {dimensions(source.space(model))}" for model in source.models)
    search = content["search"]
    return [
        f"Varied over the confirmation runs: {varied}. {fixed}",
        (
            f"Searched: {search['num_trials']} trials a model, at most {search['max_epochs']} epochs each ({spaces}). "
            "A model that is best here may not be with another space or budget."
        ),
        "It covers these checkpoints, this data set and this metric, not the architectures as such.",
        f"Equal for all models: {_equal(source)}.",
        *_nodes(source),
    ]


def _nodes(source: Source) -> list[str]:
    """Say on which nodes models were trained that asked for different ones."""
    found = []
    for model, labels in source.node_labels.items():
        asked = ", ".join(f"{key}={value}" for key, value in sorted(labels.items())) or "any node"
        nodes = Counter(trial["node"] for trial in source.of(model) if trial["node"])
        searched = [f"{node} ({count(trials, 'trial')})" for node, trials in sorted(nodes.items())]
        found.append(f"{model}: {asked}" + (f", searched on {listed(searched)}" if searched else ""))
    if not found:
        return []
    text = f"Not equal: the nodes that models were bound to. {'. '.join(found)}."
    return [
        f"{text} Seconds and device-hours of different devices cannot be compared, and limits on them are not equal."
    ]


def openings(source: Source) -> list[str]:
    """Return a line for every opening of the test split, from the manifest."""
    if source.imported:
        return ["The test split was not sealed: whoever made the table could see test scores while tuning."]
    lines = [
        f"{index}. {opening['at']}: {opening['reason']}, {count(opening['num_runs'], 'run')}"
        for index, opening in enumerate(source.manifest.test_openings, start=1)
    ]
    return lines or ["Never opened yet."]


def dimensions(space: dict[str, Any]) -> str:
    """Return how many parameters of a space are searched and fixed."""
    parameters = space["parameters"].values()
    searched = sum(len(p.get("choices", (0, 1))) > 1 and p.get("low", 0) != p.get("high", 1) for p in parameters)
    fixed = len(parameters) - searched
    return count(searched, "dimension") + (f" and {fixed} fixed" if fixed else "")


def range_words(parameter: dict[str, Any]) -> str:
    """Return a parameter's range as a reader wants it."""
    if parameter["type"] == "categorical":
        choices = parameter["choices"]
        return f"fixed: {choices[0]}" if len(choices) == 1 else " | ".join(map(str, choices))
    scale = ", log scale" if parameter["log"] else ""
    return (
        f"{parameter['low']:g} to {parameter['high']:g}{scale}{', whole numbers' if parameter['type'] == 'int' else ''}"
    )


def sources(space: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Split a space's source into that of the whole and those of its parameters."""
    whole: list[str] = []
    own: dict[str, str] = {}
    name = ""
    for part in space["source"].split("; "):
        head, separator, rest = part.partition(": ")
        if separator and head in space["parameters"]:
            name = head
            own[name] = rest
        elif name:
            own[name] += f"; {part}"
        else:
            whole.append(part)
    return "; ".join(whole), own


def _search(source: Source) -> str:
    search = source.manifest.content["search"]
    stopping = search["scheduler"]
    if stopping["type"] == "none":
        pruning = "No trial was stopped early."
    else:
        name = _STOPPING.get(stopping["type"], str(stopping["type"]))
        factor = stopping.get("reduction_factor") if stopping["type"] != "median" else None
        judged = _judged(source)
        details = [f"reduction factor {factor}"] if factor is not None else []
        pruning = (
            f"Trials were stopped early by {name} ({', '.join([*details, judged])}), each model's trials among "
            "themselves. A trial was judged only after its warm-up and its last unfreezing event."
            if judged
            else f"No trial was stopped early: in so few epochs {name} judges nowhere."
        )
    return (
        f"Each of {count(len(source.models), 'model')} was tuned separately with {search['num_trials']} trials of at "
        f"most {search['max_epochs']} epochs (sampler {search['sampler']}); trial 0 is its default configuration. "
        f"{pruning} Search saw the train and validation splits only."
    )


def _judged(source: Source) -> str:
    """Say after which epochs trials are judged, by the rule of this version; empty where after none."""
    search = source.manifest.content["search"]
    spec = SchedulerSpec(**{key: search["scheduler"][key] for key in ("type", "reduction_factor", "grace_fraction")})
    rungs = make_stopping(spec, source.objective, search["max_epochs"]).rungs
    if not rungs:
        return ""
    if spec.type == "median" and len(rungs) > 1:
        return f"judged after every epoch from {rungs[0]} on"
    return f"judged after epoch{'s' if len(rungs) > 1 else ''} {listed([str(rung) for rung in rungs])}"


def _confirmation(source: Source) -> str:
    seeds = source.manifest.seeds["confirmation"]
    return (
        f"The best trial of each model was chosen by validation {source.objective.metric} ({source.objective.goal}) "
        f"alone. It and the default were then trained anew with {count(len(seeds), 'seed')} that the search never "
        "used, the same for all models, the epoch again chosen on validation, and scored on the test split."
    )


def _data(source: Source) -> str:
    data = source.manifest.data
    counts = {split: sum(classes.values()) for split, classes in data["counts"].items()}
    origin = data.get("source") or {}
    named = ", ".join(f"{split} {origin[split]}" for split in ("train", "validation", "test") if split in origin)
    return (
        f"Train {counts['train']}, validation {counts['validation']}, test {counts['test']} examples"
        + (f" (from: {named})" if named else "")
        + f"; fingerprint {data['fingerprint'][:12]}. Licence of the data: "
        + (str(data["licence"]) if data.get("licence") else "not stated in the study")
        + f". The test split was opened {count(len(source.manifest.test_openings), 'time')}."
    )


def _statistics(source: Source) -> str:
    seeds = len(source.manifest.seeds["confirmation"])
    exact = "exact sign-flip tests" if seeds <= EXACT_PAIRS else "sign-flip tests (10,000 random sign patterns)"
    text = (
        f"Intervals are Student's t over seeds (95%). Verdicts are {exact} on paired seeds, two-sided, Holm-adjusted "
        "over all pairs at 5%. "
    )
    if len(source.manifest.test_openings) > 1:
        text += "Seeds were added after a first look at the test scores, so false claims are likelier than 5%. "
    if source.delta:
        text += f"Two models tie where two one-sided tests say that they differ by less than {source.delta:g}. "
    return text + (
        "The second unit of resampling, the test example, has its own table: it says what another test set of this "
        "size could have shown for these trained models."
    )


def _checkpoints(source: Source) -> str:
    lines = []
    for entry in source.manifest.content["models"]:
        known = source.manifest.checkpoints.get(entry["name"], {})
        kind, licence = known.get("model_type"), known.get("licence")
        name = entry["checkpoint"].rstrip("/").rsplit("/", 2)[-2:]
        lines.append(
            f"{entry['name']} is {'/'.join(name) or 'not named'}"
            + (f" ({kind})" if kind else "")
            + f", licence {licence or 'not stated in its card'}, weights {entry['weights'][:12] or 'not known'}"
        )
    return "; ".join(lines) + "."


def _versions(source: Source) -> str:
    machine = source.manifest.machine
    where = f"; {machine['cores']} cores, {machine['platform']}" if {"cores", "platform"} <= machine.keys() else ""
    return ", ".join(f"{name} {version}" for name, version in source.manifest.versions.items()) + where + "."


def _equal(source: Source) -> str:
    search = source.manifest.content["search"]
    equal = "number of trials, maximum epochs, early-stopping rule, confirmation seeds and data"
    if search.get("device_hours_per_model"):
        equal += f", at most {search['device_hours_per_model']:g} device-hours"
    return equal + "; what was not equal stands in red under Effort"


def _imported_method(source: Source) -> list[Paragraph]:
    imported = source.imported or {}
    columns = ", ".join(f"{name} from {column!r}" for name, column in imported["columns"].items())
    text = (
        f"Imported from {imported['source']} (as {imported['format']}, SHA-256 {imported['sha256'][:12]}); sweeper did "
        f"not run these trials. Columns: {columns}. Metric: {source.objective.metric}, {source.objective.goal}."
    )
    lines = [("Import", text)]
    if source.scores:
        text = "Intervals are Student's t over the imported seeds (95%), verdicts exact sign-flip tests, Holm-adjusted."
        lines.append(("Statistics", text))
    versions = ", ".join(f"{name} {version}" for name, version in source.manifest.versions.items())
    lines.append(("Read by", f"{versions}."))
    return lines + [("Note", note) for note in source.manifest.notes]


def _imported_scope(source: Source) -> list[str]:
    """Return, one by one, what cannot be claimed."""
    lines = [
        (
            "The search may not have been independent draws (tuning curves and bands hold for those only), nor equal "
            "in space and budget between the models; early stopping, retries and choices made by hand are not known."
        )
    ]
    if source.scores:
        lines.append(
            "Confirmation runs were imported with their seeds; that the search never used these seeds is not known."
        )
    else:
        lines.append(
            "No fresh seeds: each model stands for one run of its best trial, chosen among many; its scores flatter."
        )
    lines.append(
        "The test split was not sealed: whoever made the table could see test scores while tuning. The data are not "
        "known here (no fingerprint), so splits cannot be checked for equality or leakage."
    )
    return lines
