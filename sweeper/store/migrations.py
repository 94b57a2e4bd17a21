"""Old ledgers, read as if they had been written today: one step from each schema to the next.

A step sees the events of a ledger one after the other, in order, and returns each as the next schema has it. It never
adds, drops or reorders one. Schemas:

1. ``n, t, kind, ..., crc``
2. ``s``: seconds since this session opened the ledger, by a clock that never jumps. Time budgets are counted by it;
   until then a clock set forward by a day had spent a day.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Fields = dict[str, Any]
Step = Callable[[Fields], Fields]

SCHEMA = 2


def from_1_to_2() -> Step:
    """Derive ``s`` from the times of day; a clock that was set back counts as no time."""
    before: float | None = None
    seconds = 0.0

    def step(fields: Fields) -> Fields:
        nonlocal before, seconds
        now = float(fields["t"])
        opened = before is None or fields["kind"] == "study_opened"
        seconds = 0.0 if opened or before is None else seconds + max(0.0, now - before)
        before = now
        return {**fields, "s": seconds}

    return step


STEPS: dict[int, Callable[[], Step]] = {1: from_1_to_2}


def migration(schema: int) -> Step:
    """Return the way from ``schema`` to `SCHEMA`; make a new one for each ledger."""
    steps = [STEPS[version]() for version in range(schema, SCHEMA)]

    def step(fields: Fields) -> Fields:
        for one in steps:
            fields = one(fields)
        return {**fields, "schema": SCHEMA} if fields["kind"] == "ledger_created" else fields

    return step
