"""The leaderboard as a LaTeX table (booktabs), with every name escaped."""

from __future__ import annotations

from typing import Any

from sweeper.report.source import Source

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def latex(source: Source, entries: list[dict[str, Any]]) -> str:
    """Return a table with a row a model: tuned and default with intervals, trials; the caption states the scope."""
    metric = escape(source.objective.metric)
    seeds = max((len(entry["tuned"]["seeds"]) for entry in entries), default=0)
    scope = f"means over {seeds} seeds with 95\\% Student's t intervals" if seeds else "not confirmed with fresh seeds"
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        f"\\caption{{{escape(source.manifest.name)}: test {metric}, {scope}.}}",
        "\\begin{tabular}{rlllr}",
        "\\toprule",
        "rank & model & tuned & default & trials \\\\",
        "\\midrule",
    ]
    lines += [
        f"{entry['rank']} & {escape(entry['model'])} & {_interval(entry['tuned'])} & {_interval(entry['default'])} "
        f"& {entry['num_trials']} \\\\"
        for entry in entries
    ]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])


def escape(text: str) -> str:
    """Return ``text`` so that LaTeX prints it as it is."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text.replace("\n", " "))


def _interval(scores: dict[str, Any]) -> str:
    if scores["mean"] is None:
        return "--"
    if scores["ci_low"] is None:
        return f"{scores['mean']:.4f}"
    return f"{scores['mean']:.4f} [{scores['ci_low']:.4f}, {scores['ci_high']:.4f}]"
