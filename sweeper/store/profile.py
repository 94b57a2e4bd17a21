"""Where the time of a run went, by lane: a table, and a trace for chrome://tracing or https://ui.perfetto.dev."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sweeper.store.paths import ResultPaths, replace_file
from sweeper.train.spans import Span

ACTIVITIES = (
    "start-up",
    "waiting",
    "set-up",
    "data",
    "cache",
    "forward",
    "backward",
    "optimizer",
    "evaluation",
    "checkpoint",
    "training",
    "other",
)
"""Rows of the table. ``start-up``: imports and models; ``waiting``: for the next command; ``set-up``: a trial's model
and optimizer; ``training``: of an epoch what no row above it has; ``other``: anything else between two commands."""


def append_spans(paths: ResultPaths, spans: Iterable[Span]) -> None:
    """Add spans of this process to its own file; no other process writes there."""
    paths.spans.mkdir(parents=True, exist_ok=True)
    with (paths.spans / f"{socket.gethostname()}-{os.getpid()}.jsonl").open("a") as file:
        file.writelines(json.dumps(asdict(span)) + "\n" for span in spans)


def write_profile(paths: ResultPaths) -> str:
    """Turn what all processes wrote into ``profile/trace.json`` and ``profile/table.txt``; return the table."""
    lanes = {path.stem: _read(path) for path in sorted(paths.spans.glob("*.jsonl"))}
    events: list[dict[str, Any]] = []
    for number, (name, spans) in enumerate(lanes.items()):
        events.append({"name": "thread_name", "ph": "M", "pid": 0, "tid": number, "args": {"name": f"lane {name}"}})
        events.extend(
            {
                "name": span.name,
                "ph": "X",
                "pid": 0,
                "tid": number,
                "ts": span.began * 1e6,
                "dur": span.seconds * 1e6,
                "args": {key: round(value, 6) for key, value in span.own.items()},
            }
            for span in spans
        )
    table = _table(lanes)
    trace = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})
    replace_file(paths.profile / "trace.json", lambda path: path.write_text(trace))
    replace_file(paths.profile / "table.txt", lambda path: path.write_text(table))
    return table


def _read(path: Path) -> list[Span]:
    """Read a process's spans; a torn last line, of a lane that died, is left out."""
    lines = path.read_text().split("\n")[:-1]
    return [Span(**json.loads(line)) for line in lines]


def _table(lanes: dict[str, list[Span]]) -> str:
    """Return seconds by activity and lane."""
    sums: list[Counter[str]] = []
    for spans in lanes.values():
        total: Counter[str] = Counter()
        for span in spans:
            total.update(span.own)
        sums.append(total)
    whole = sum(total.total() for total in sums) or 1.0
    heads = ["seconds", *(f"lane {number}" for number in range(len(sums))), "share"]
    rows = [heads]
    for activity in ACTIVITIES:
        values = [total[activity] for total in sums]
        rows.append([activity, *(f"{value:.2f}" for value in values), f"{sum(values) / whole:.1%}"])
    rows.append(["all", *(f"{total.total():.2f}" for total in sums), ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    names = [f"lane {number}: {name}" for number, name in enumerate(lanes)]
    return "\n".join([*lines, *names]) + "\n"
