"""Where the time of a process goes: named spans, nested, each with the time that is its own."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

FINE = frozenset({"data", "forward", "backward", "optimizer"})
"""Spans of every step: summed up within the span around them, not recorded one by one."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of time.

    Parameters
    ----------
    name:
        What was done.
    began:
        Seconds since the epoch.
    seconds:
        How long it took, with the spans inside it.
    own:
        Seconds by name: those under its own name without the spans inside it, and the fine spans' that ran in it.
    """

    name: str
    began: float
    seconds: float
    own: dict[str, float]


@dataclass
class _Open:
    inside: float = 0.0
    fine: Counter[str] = field(default_factory=Counter)


class Spans:
    """Records spans of one thread: ``with spans("evaluation"): ...``; a `sweeper.train.options.Measure`.

    Parameters
    ----------
    synchronize:
        Called where a span begins and ends: a GPU works on after its calls have returned.
    """

    def __init__(self, synchronize: Callable[[], Any] = lambda: None) -> None:
        self._synchronize = synchronize
        self._open: list[_Open] = []
        self._closed: list[Span] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what runs inside the block."""
        self._synchronize()
        began, clock = time.time(), time.perf_counter()
        self._open.append(_Open())
        try:
            yield
        finally:
            self._synchronize()
            seconds = time.perf_counter() - clock
            mine = self._open.pop()
            own = seconds - mine.inside
            if self._open:
                self._open[-1].inside += seconds
            if name in FINE and self._open:
                self._open[-1].fine += mine.fine + Counter({name: own})
            else:
                self.add(name, began, seconds, {**mine.fine, name: mine.fine[name] + own})

    def add(self, name: str, began: float, seconds: float, own: dict[str, float] | None = None) -> None:
        """Add a span that was measured elsewhere."""
        self._closed.append(Span(name=name, began=began, seconds=seconds, own=own or {name: seconds}))

    def drain(self) -> list[Span]:
        """Return the spans that ended since the last call, and forget them."""
        ended, self._closed = self._closed, []
        return ended
