"""Following a run: a live table on a terminal, plain lines elsewhere. Both go to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from sweeper.core.trial import TrialKind, TrialState
from sweeper.plan.plan import StudyPlan
from sweeper.workflows.book import Book

LINE_EVERY_SECONDS = 10.0
"""Plain output: a summary line at most this often; ends of phases always."""


class Progress:
    """Shows trials per model, best so far and time left; a `Listener` of the book, and a context manager.

    Parameters
    ----------
    plan:
        What is to be done.
    console:
        Where to write; None: stderr, live when it is a terminal.
    """

    def __init__(self, plan: StudyPlan, console: Console | None = None) -> None:
        self._plan = plan
        self._console = console or Console(file=sys.stderr)
        self._book: Book | None = None
        self._phase = "starting"
        self._began = time.monotonic()
        self._done_before = 0
        self._last_line = 0.0
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def follow(self, book: Book) -> None:
        """Take the figures from this book from now on."""
        self._book = book
        self._done_before = self._num_done()

    def phase(self, name: str) -> None:
        """Say what the run does next."""
        self._phase = name
        self._began, self._done_before = time.monotonic(), self._num_done()
        self._show(force=True)

    def say(self, text: str) -> None:
        """Print one line above the live view."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Refresh after an event; retries and failures are told at once."""
        if event["kind"] == "retry":
            self.say(f"{event['trial_id']}: goes on elsewhere, {event['reason']}")
        elif event["kind"] == "trial_ended" and TrialState(event["state"]).has_failed:
            self.say(f"{event['trial_id']}: {event['state']}, {event['reason']}")
        self._show()

    # -- what is shown -------------------------------------------------------------------------------------

    def _show(self, *, force: bool = False) -> None:
        if self._console.is_terminal:
            self._live.update(self._table(), refresh=True)
        elif force or time.monotonic() - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            cells = [f"{name} {done}/{total}{best}" for name, done, total, _, best in self._rows()]
            self.say(f"[{self._phase}] " + "; ".join(cells) + self._time_left())

    def _table(self) -> Table:
        table = Table(title=f"{self._plan.name}: {self._phase}{self._time_left()}", title_justify="left")
        for header in ("model", "ended", "pruned", "best"):
            table.add_column(header, justify="left" if header == "model" else "right")
        for name, done, total, pruned, best in self._rows():
            table.add_row(name, f"{done}/{total}", str(pruned), best.removeprefix(" best "))
        return table

    def _rows(self) -> list[tuple[str, int, int, int, str]]:
        confirming = self._phase in ("confirm", "test")
        kind = TrialKind.CONFIRM if confirming else TrialKind.SEARCH
        rows = []
        for model in self._plan.models:
            trials = [r for r in self._trials() if r.spec.model == model.name and r.spec.kind is kind]
            total = len(trials) if confirming else self._plan.budget.num_trials
            ended = [r for r in trials if r.state.is_final]
            values = [r.value for r in ended if r.value is not None]
            best = ""
            if values and self._book is not None:
                best = f" best {min(values, key=self._book.objective.loss):.4g}"
            pruned = sum(r.state is TrialState.PRUNED for r in ended)
            rows.append((model.name, len(ended), total, pruned, best))
        return rows

    def _trials(self) -> list[Any]:
        return list(self._book.state.trials.values()) if self._book is not None else []

    def _num_done(self) -> int:
        return sum(record.state.is_final for record in self._trials())

    def _time_left(self) -> str:
        """Estimate the rest of the phase from its own pace."""
        done = self._num_done() - self._done_before
        left = sum(total - ended for _, ended, total, _, _ in self._rows())
        if done < 2 or left <= 0:
            return ""
        seconds = (time.monotonic() - self._began) / done * left
        return f", about {seconds / 60:.1f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"
