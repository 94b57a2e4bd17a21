"""The report as Markdown: the summary, the leaderboard, the effort and the method."""

from __future__ import annotations

import re
from typing import Any

from sweeper.report.gaps import gaps
from sweeper.report.source import Source
from sweeper.report.words import boundary_flags, effort, method, summary


def markdown(source: Source, entries: list[dict[str, Any]], curves: dict[str, Any]) -> str:
    """Return the report as Markdown; names are escaped. ``curves`` is what `tuning_curves` returns."""
    lines = [f"# {escape(source.manifest.name)}", "", escape(summary(source, entries)), ""]
    lines += [
        "| rank | model | tuned, test | default, test | trials | device-seconds |",
        "| --: | --- | --- | --- | --: | --: |",
    ]
    lines += [
        f"| {e['rank']} | {escape(e['model'])} | {interval(e['tuned'])} | {interval(e['default'])} "
        f"| {e['num_trials']} | {e['device_seconds']:.0f} |"
        for e in entries
    ]
    lines += ["", *_claims(entries), *_tuning(curves), *_gaps(gaps(source)), "## Effort", ""]
    rows = effort(source)
    keys = ["model", "trials", "complete", "pruned", "fail", "infeasible", "epochs"]
    lines += [f"| {' | '.join(keys)} |", f"| {' | '.join('---' for _ in keys)} |"]
    lines += ["| " + " | ".join(escape(str(row[key])) for key in keys) + " |" for row in rows]
    lines += ["", *(f"- {escape(line)}" for line in boundary_flags(source)), "", "## Method and scope", ""]
    lines += [f"{escape(line)}\n" for line in method(source)]
    lines += ["## Best configurations", ""]
    for entry in entries:
        lines += [
            f"### {escape(entry['model'])}",
            "",
            *(f"- `{k}`: `{v}`" for k, v in entry["best_params"].items()),
            "",
        ]
    return "\n".join(lines)


def _claims(entries: list[dict[str, Any]]) -> list[str]:
    claims = [
        f"- {escape(entry['model'])} {escape(v['verdict'])} {escape(v['other'])}: difference {v['difference']:+.4f}"
        + (f" [{v['ci_low']:+.4f}, {v['ci_high']:+.4f}]" if v["ci_low"] is not None else "")
        + f", p = {v['p_value']:.3g} (Holm), unit: {v['unit']}"
        + (f", about {v['more_seeds']} more seeds" if v["more_seeds"] else "")
        for entry in entries
        for v in entry["verdicts"]
        if entry["rank"] < next(other["rank"] for other in entries if other["model"] == v["other"])
    ]
    return ["## Verdicts", "", *claims, ""] if claims else []


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
    lines = ["## Validation against test", "", "Positive: validation looks better than what follows it.", ""]
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
