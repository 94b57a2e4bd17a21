"""The report as Markdown: the summary, the leaderboard, the effort and the method."""

from __future__ import annotations

import re
from typing import Any

from sweeper.report.source import Source
from sweeper.report.words import boundary_flags, effort, method, summary


def markdown(source: Source, entries: list[dict[str, Any]]) -> str:
    """Return the report as Markdown; names are escaped."""
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
    lines += ["", "## Effort", ""]
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
