"""Two result folders side by side: only on the same data and metric, unless the difference is accepted and named."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeper.core.errors import InputError, Problem
from sweeper.plan.plan import differences
from sweeper.report.leaderboard import leaderboard
from sweeper.report.source import Source, read_source
from sweeper.stats import welch_interval

_SHOWN = 12  # differences of the plans printed; --json has all


@dataclass(frozen=True)
class Change:
    """A model that stands in both: its mean tuned test score in each, and b - a with Welch's interval."""

    model: str
    a: float
    b: float
    difference: float
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True)
class Comparison:
    """Two leaderboards and what stands between them.

    ``same_data`` is None where the data of one are not known (imported); ``data_differences`` names what differs in
    data and metric; ``plan_differences`` what differs in everything else that determines results.
    """

    a: dict[str, Any]
    b: dict[str, Any]
    metric: str
    same_data: bool | None
    data_differences: list[str]
    plan_differences: list[str]
    models: list[Change]

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """Return the comparison for a terminal."""
        lines = [f"A: {self.a['path']}", f"B: {self.b['path']}"]
        lines += [f"DIFFERENT DATA: {line}" for line in self.data_differences if self.same_data is False]
        lines += [line for line in self.data_differences if self.same_data is not False]
        if self.same_data:
            lines.append("Same data (by fingerprint) and metric.")
        lines += ["", *_side_by_side(self.a["leaderboard"], self.b["leaderboard"], self.metric), ""]
        if self.models:
            lines.append("Models in both, B - A (Welch's 95% interval over seeds, not adjusted for several models):")
            lines += [f"  {change.model}: {change.difference:+.4f}{_bounds(change)}" for change in self.models]
        more = len(self.plan_differences) - _SHOWN
        if self.plan_differences:
            lines += ["", "The plans differ (A, now B):", *(f"  {line}" for line in self.plan_differences[:_SHOWN])]
            lines += [f"  and {more} more (--json has them)"] if more > 0 else []
        return "\n".join(lines)


def compare(first: Path, second: Path, *, accept_difference: bool = False) -> Comparison:
    """Set two result folders side by side.

    Raises
    ------
    InputError
        When one is no result folder, or their data or metrics differ and ``accept_difference`` is not set.
    """
    a, b = read_source(first), read_source(second)
    same, found = _data_differences(a, b)
    if same is False and not accept_difference:
        place = f"{first} and {second}"
        remedy = "compare results on the same data, or pass --accept-difference"
        raise InputError([Problem(place, "must have the same data and metric", line, remedy) for line in found])
    boards = leaderboard(a), leaderboard(b)
    return Comparison(
        a=_side(a, boards[0]),
        b=_side(b, boards[1]),
        metric=a.objective.metric,
        same_data=same,
        data_differences=found,
        plan_differences=differences(_plan(a), _plan(b)),
        models=_changes(*boards),
    )


def _side(source: Source, board: list[dict[str, Any]]) -> dict[str, Any]:
    manifest = source.manifest
    return {
        "path": str(source.paths.root),
        "name": manifest.name,
        "plan_hash": manifest.plan_hash,
        "fingerprint": manifest.data.get("fingerprint"),
        "imported": manifest.imported or None,
        "test_openings": len(manifest.test_openings),
        "leaderboard": board,
    }


def _plan(source: Source) -> dict[str, Any]:
    return {key: value for key, value in source.manifest.content.items() if key not in ("objective", "data")}


def _data_differences(a: Source, b: Source) -> tuple[bool | None, list[str]]:
    """Return whether data and metric are the same (None: not known), and what differs."""
    metrics = [f"{s.objective.metric} ({s.objective.goal})" for s in (a, b)]
    if metrics[0] != metrics[1]:
        return False, [f"metric {metrics[0]} in A, {metrics[1]} in B"]
    prints: list[Any] = [s.manifest.data.get("fingerprint") for s in (a, b)]
    if None in prints:
        unknown = " and ".join(name for name, value in zip("AB", prints, strict=True) if value is None)
        return None, [f"The data of {unknown} are not known (imported): whether both saw the same data is not checked."]
    if prints[0] == prints[1]:
        return True, []
    found = [f"fingerprint {prints[0][:12]} in A, {prints[1][:12]} in B"]
    for split in ("train", "validation", "test"):
        counts = [s.manifest.data["counts"].get(split, {}) for s in (a, b)]
        sizes = [sum(count.values()) for count in counts]
        if sizes[0] != sizes[1]:
            found.append(f"{split} has {sizes[0]} examples in A, {sizes[1]} in B")
        elif counts[0] != counts[1]:
            found.append(f"{split} has other class counts in A than in B")
    classes = [set(s.manifest.data.get("classes", ())) for s in (a, b)]
    if classes[0] != classes[1]:
        found.append(f"classes in one only: {', '.join(map(str, sorted(classes[0] ^ classes[1])))}")
    return False, found


def _changes(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[Change]:
    theirs = {entry["model"]: entry["tuned"] for entry in b}
    changes = []
    for entry in a:
        mine, other = entry["tuned"], theirs.get(entry["model"])
        if other is None or mine["mean"] is None or other["mean"] is None:
            continue
        found = welch_interval(other["scores"], mine["scores"])
        changes.append(Change(entry["model"], mine["mean"], other["mean"], found.mean, found.low, found.high))
    return changes


def _side_by_side(a: list[dict[str, Any]], b: list[dict[str, Any]], metric: str) -> list[str]:
    cells = [["rank", f"A: model, test {metric}", f"B: model, test {metric}"]]
    for rank in range(max(len(a), len(b))):
        row = [str(rank + 1)]
        for board in (a, b):
            entry = board[rank] if rank < len(board) else None
            row.append(f"{entry['model']} {_scores(entry['tuned'])}" if entry else "")
        cells.append(row)
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _scores(scores: dict[str, Any]) -> str:
    if scores["mean"] is None:
        return "not confirmed"
    bounds = f" [{scores['ci_low']:.4f}, {scores['ci_high']:.4f}]" if scores["ci_low"] is not None else ""
    return f"{scores['mean']:.4f}{bounds}"


def _bounds(change: Change) -> str:
    if change.ci_low is None or change.ci_high is None:
        return " (no interval: too few seeds)"
    return f" [{change.ci_low:+.4f}, {change.ci_high:+.4f}]"
