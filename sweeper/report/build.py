"""Building the report: a self-contained page, Markdown, LaTeX, ``leaderboard.json`` and ``tuning_curves.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sweeper.core.trial import TrialState
from sweeper.report.figures import figures
from sweeper.report.gaps import gaps
from sweeper.report.latex import latex
from sweeper.report.leaderboard import leaderboard
from sweeper.report.markdown import interval, markdown
from sweeper.report.source import read_source
from sweeper.report.tuning import tuning_curves
from sweeper.report.words import boundary_flags, effort, method, summary
from sweeper.store.paths import replace_file


def build_report(root: Path) -> Path:
    """Build the report of a result folder from its files alone, and return the page's path.

    Raises
    ------
    InputError
        When it is no result folder, or one of its files is damaged.
    """
    source = read_source(root)
    entries = leaderboard(source)
    curves = tuning_curves(source)
    environment = Environment(loader=PackageLoader("sweeper.report"), autoescape=True, trim_blocks=True)
    page = environment.get_template("report.html.j2").render(
        name=source.manifest.name,
        metric=source.objective.metric,
        goal=source.objective.goal,
        plan_hash=source.manifest.plan_hash,
        created_at=source.manifest.created_at,
        summary=summary(source, entries),
        entries=entries,
        figures=figures(source, entries, curves),
        curves=curves,
        gaps=gaps(source),
        effort=effort(source),
        flags=boundary_flags(source),
        failures=[t for t in source.trials if t["state"] in (TrialState.FAIL, TrialState.INFEASIBLE)],
        method=method(source),
        models=source.manifest.content["models"],
        interval=interval,
        gain=_gain,
        plotlyjs=Markup(get_plotlyjs()),  # noqa: S704 - the library itself, not anyone's text
    )
    folder = source.paths.report
    _write(folder / "leaderboard.json", json.dumps(entries, indent=2) + "\n")
    _write(folder / "tuning_curves.json", json.dumps(curves, allow_nan=False) + "\n")
    _write(folder / "leaderboard.tex", latex(source, entries))
    _write(folder / "report.md", markdown(source, entries, curves))
    _write(folder / "index.html", page)
    return folder / "index.html"


def _write(path: Path, text: str) -> None:
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _gain(entry: dict[str, Any]) -> str:
    tuned, default = entry["tuned"]["mean"], entry["default"]["mean"]
    return "" if tuned is None or default is None else f"{tuned - default:+.4f}"
