"""Building the report: a self-contained page, Markdown, LaTeX, CSV, ``leaderboard.json`` and ``tuning_curves.json``."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from sweeper.report.examples import comparisons, read_examples
from sweeper.report.latex import latex
from sweeper.report.leaderboard import leaderboard
from sweeper.report.markdown import markdown
from sweeper.report.page import page
from sweeper.report.source import read_source
from sweeper.report.tuning import tuning_curves
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
    examples = read_examples(source)
    by_example = comparisons(examples)
    folder = source.paths.report
    _write(folder / "leaderboard.json", json.dumps(entries, indent=2) + "\n")
    _write(folder / "tuning_curves.json", json.dumps(curves, allow_nan=False) + "\n")
    _write(folder / "leaderboard.tex", latex(source, entries))
    _write(folder / "leaderboard.csv", _csv([_flat_entry(entry) for entry in entries]))
    _write(folder / "trials.csv", _csv(source.trials))
    _write(folder / "report.md", markdown(source, entries, curves, by_example))
    _write(folder / "index.html", page(source, entries, curves, examples, by_example))
    return folder / "index.html"


def _write(path: Path, text: str) -> None:
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _csv(rows: list[dict[str, Any]]) -> str:
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    scores = {
        f"{config}_{key}": entry[config][key]
        for config in ("tuned", "default")
        for key in ("mean", "ci_low", "ci_high")
    }
    return (
        {key: entry[key] for key in ("rank", "model")}
        | scores
        | {"num_seeds": len(entry["tuned"]["seeds"]), "best_validation": entry["validation"]}
        | {key: entry[key] for key in ("num_trials", "device_seconds")}
        | {"best_params": json.dumps(entry["best_params"])}
    )
