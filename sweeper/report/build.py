"""Building the report: ``index.html`` (self-contained), ``report.md`` and ``leaderboard.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sweeper.core.trial import TrialState
from sweeper.report.figures import figures
from sweeper.report.leaderboard import leaderboard
from sweeper.report.markdown import interval, markdown
from sweeper.report.source import read_source
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
    environment = Environment(loader=PackageLoader("sweeper.report"), autoescape=True, trim_blocks=True)
    page = environment.get_template("report.html.j2").render(
        name=source.manifest.name,
        metric=source.objective.metric,
        goal=source.objective.goal,
        plan_hash=source.manifest.plan_hash,
        created_at=source.manifest.created_at,
        summary=summary(source, entries),
        entries=entries,
        figures=figures(source, entries),
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
    board = json.dumps(entries, indent=2) + "\n"
    replace_file(folder / "leaderboard.json", lambda partial: partial.write_text(board))
    replace_file(folder / "report.md", lambda partial: partial.write_text(markdown(source, entries)))
    replace_file(folder / "index.html", lambda partial: partial.write_text(page, encoding="utf-8"))
    return folder / "index.html"


def _gain(entry: dict[str, Any]) -> str:
    tuned, default = entry["tuned"]["mean"], entry["default"]["mean"]
    return "" if tuned is None or default is None else f"{tuned - default:+.4f}"
