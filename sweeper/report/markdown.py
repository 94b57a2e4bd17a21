"""The report as Markdown: everything of the page but its figures, and of the trials the best configurations alone."""

from __future__ import annotations

import re
from typing import Any

from sweeper.report.costs import costs, setting
from sweeper.report.effects import flips, tuning_effects
from sweeper.report.gaps import OVERTUNING_NOTE, gaps
from sweeper.report.method import method, openings, scope
from sweeper.report.probabilities import METRICS, probability_rows
from sweeper.report.retention import retention_rows
from sweeper.report.source import Source
from sweeper.report.words import boundary_flags, effort, points, summary, verdict_rows


def markdown(
    source: Source, entries: list[dict[str, Any]], curves: dict[str, Any], by_example: list[dict[str, Any]]
) -> str:
    """Return the report as Markdown; names are escaped.

    ``curves`` is what `tuning_curves` returns, ``by_example`` what `comparisons` of test examples returns.
    """
    lines = [f"# {escape(source.manifest.name)}", "", escape(summary(source, entries)), ""]
    lines += [*(f"- {escape(point['text'])}" for point in points(source, curves)), ""]
    lines += [
        "| rank | model | tuned, test | default, test | trials | device-seconds |",
        "| --: | --- | --- | --- | --: | --: |",
    ]
    lines += [
        f"| {e['rank']} | {escape(e['model'])} | {interval(e['tuned'])} | {interval(e['default'])} "
        f"| {e['num_trials']} | {format(e['device_seconds'], '.0f') if e['device_seconds'] is not None else '-'} |"
        for e in entries
    ]
    lines += ["", *_claims(source, entries), *_by_example(by_example), *_effects(source), *_tuning(curves)]
    lines += [*_gaps(gaps(source)), "## Openings of the test split", ""]
    lines += [*(f"- {escape(line)}" for line in openings(source)), "", "## Effort", ""]
    rows = effort(source)
    keys = ["model", "trials", "complete", "pruned", "fail", "infeasible", "epochs", "unequal"]
    lines += [f"| {' | '.join(keys)} |", f"| {' | '.join('---' for _ in keys)} |"]
    lines += ["| " + " | ".join(escape(str(row[key])) for key in keys) + " |" for row in rows]
    lines += [
        "",
        *(f"- {escape(line)}" for line in boundary_flags(source)),
        "",
        *_costs(source, entries),
        *_retention(source),
        *_probabilities(source),
    ]
    lines += ["## Scope of the claims", "", *(f"- {escape(line)}" for line in scope(source)), "", "## Method", ""]
    lines += [f"**{heading}.** {escape(text)}\n" for heading, text in method(source)]
    lines += ["## Best configurations", ""]
    for entry in entries:
        lines += [
            f"### {escape(entry['model'])}",
            "",
            *(f"- `{k}`: `{v}`" for k, v in entry["best_params"].items()),
            "",
        ]
    return "\n".join(lines)


def _claims(source: Source, entries: list[dict[str, Any]]) -> list[str]:
    claims = [
        f"- {escape(row['model'])} {escape(row['verdict'])} {escape(row['other'])}: difference {row['difference']:+.4f}"
        f"{_bounds(row)}, p = {row['p_value']:.3g} (Holm), unit: {row['unit']}"
        + (f", {row['needs']}" if row["needs"] else "")
        for row in verdict_rows(source, entries)
    ]
    return ["## Verdicts", "", *claims, ""] if claims else []


def _by_example(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        f"With the test example as the unit (share of right answers, {rows[0]['num_examples']} examples, McNemar's p):",
        "",
    ]
    lines += [
        f"- {escape(row['model'])} against {escape(row['other'])}: {row['difference']:+.4f}{_bounds(row)}, "
        f"only the first right {row['only_model']}, only the second {row['only_other']}, p = {row['p_value']:.3g} "
        f"(Holm)"
        for row in rows
    ]
    return [*lines, ""]


def _effects(source: Source) -> list[str]:
    effects = tuning_effects(source)
    if not effects:
        return []
    lines = ["## What tuning changed", "", *(f"{escape(line)}\n" for line in flips(source))]
    lines += ["| model | tuned | default | tuned better by | p (Holm) | |", "| --- | --: | --: | --: | --: | --- |"]
    for effect in effects:
        better = f"{effect.difference:+.4f}{_bounds(vars(effect))}"
        p_value = "" if effect.same else f"{effect.p_value:.3g}"
        cells = [escape(effect.model), f"{effect.tuned:.4f}", f"{effect.default:.4f}", better, p_value, effect.words]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _costs(source: Source, entries: list[dict[str, Any]]) -> list[str]:
    rows = costs(source, entries)
    keys = ["num_parameters", "checkpoint_bytes", "search_seconds", "training_seconds"]
    if not any(row[key] for row in rows for key in keys):
        return []
    names = [key.replace("_", " ") for key in keys] + [
        *(f"seconds at batch {size}" for size in (1, 32)),
        *(f"examples a second at batch {size}" for size in (1, 32)),
        "Pareto front",
    ]
    lines = ["## Cost beside quality", "", f"| model | {' | '.join(names)} |", f"| --- |{' --: |' * len(names)}"]
    for row in rows:
        batches = [row["batches"].get(size, {}) for size in (1, 32)]
        values = [row[key] for key in keys]
        values += [batch.get(key) for key in ("seconds", "examples_per_second") for batch in batches]
        cells = [
            "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value) for value in values
        ]
        lines.append(f"| {escape(row['model'])} | {' | '.join(cells)} | {'yes' if row['pareto'] else ''} |")
    return [*lines, "", f"{escape(setting(source))}\n"]


def _retention(source: Source) -> list[str]:
    rows = retention_rows(source)
    if not rows:
        return []
    names = ["model", "configuration", "schedule", f"test {source.objective.metric}"]
    names += [f"{rows[0]['metric']} before", "after", "change"]
    lines = [
        "## What fine-tuning forgot",
        "",
        f"| {' | '.join(names)} |",
        "| --- | --- | --- | --: | --: | --: | --: |",
    ]
    for row in rows:
        numbers = [f"{row[key]:.4f}" for key in ("test", "before", "after")]
        cells = [escape(row["model"]), row["config"], row["schedule"], *numbers, f"{row['change']:+.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _probabilities(source: Source) -> list[str]:
    rows = probability_rows(source)
    if not rows:
        return []
    names = ["model", "configuration", *(name.replace("_", " ") for name in METRICS)]
    lines = ["## How good the probabilities are", "", f"| {' | '.join(names)} |", "| --- | --- | --: | --: | --: |"]
    for row in rows:
        cells = [escape(row["model"]), row["config"], *(f"{row[name]:.4f}" for name in METRICS)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _bounds(row: dict[str, Any]) -> str:
    return f" [{row['ci_low']:+.4f}, {row['ci_high']:+.4f}]" if row["ci_low"] is not None else ""


def _tuning(curves: dict[str, Any]) -> list[str]:
    lines = ["## Tuning curves", ""]
    lines += [f"{escape(sentence)}\n" for sentence in curves["sentences"]]
    models = curves["models"]
    if models:
        most = min(entry["num_trials"] for entry in models.values())
        shown = sorted({n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, most) if n <= most})
        lines += [
            (
                f"Expected best validation {escape(curves['metric'])} by number of trials: V (U); "
                "all points and bands stand in `tuning_curves.json`.\n"
            ),
            f"| model | {' | '.join(map(str, shown))} |",
            f"| --- |{' --: |' * len(shown)}",
        ]
        for model, entry in models.items():
            at = {n: index for index, n in enumerate(entry["n"])}
            best = entry["expected_best"]
            cells = [f"{best['v'][at[n]]:.5f} ({best['u'][at[n]]:.5f})" if n in at else "" for n in shown]
            lines.append(f"| {escape(model)} | {' | '.join(cells)} |")
    return [*lines, "", *(f"- {escape(caveat)}" for caveat in curves["caveats"]), ""]


def _gaps(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    keys = ["search", "validation", "test", "optimism", "gap", "overtuning", "relative_overtuning"]
    note = f"Positive: validation looks better than what follows it. {OVERTUNING_NOTE}"
    lines = ["## Validation against test", "", note, ""]
    lines += [f"| model | config | {' | '.join(key.replace('_', ' ') for key in keys)} |"]
    lines += [f"| --- | --- |{' --: |' * len(keys)}"]
    for row in rows:
        cells = ["" if row[key] is None else f"{row[key]:.4f}" for key in keys]
        lines.append(f"| {escape(row['model'])} | {row['config']} | {' | '.join(cells)} |")
    return [*lines, ""]


def interval(scores: dict[str, Any]) -> str:
    """Return ``mean [low, high]`` of a leaderboard entry's scores."""
    if scores["mean"] is None:
        return "not confirmed"
    if scores["ci_low"] is None:
        return f"{scores['mean']:.4f}"
    return f"{scores['mean']:.4f} [{scores['ci_low']:.4f}, {scores['ci_high']:.4f}]"


def escape(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is, markup included."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text).replace("\n", " ")
