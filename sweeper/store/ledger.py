r"""The ledger: an append-only list of events, and the only truth about a study.

Format: one JSON object a line, ``{"n": 0, "t": ..., "s": ..., "kind": ..., ..., "crc": "8 hex digits"}``, where ``crc``
is the CRC-32 of the line without its crc field. ``n`` counts up from 0; the first event is ``ledger_created`` with the
schema version. Ledgers of older schemas are migrated when they are opened (`sweeper.store.migrations`).

Durability: when `Ledger.append` has returned, the event is on disk (write, flush, fsync) and survives the death of
the process and of the machine; in an object store it is an object of its own (`sweeper.store.segments`). Events of a
`Ledger.together` are durable at its end, as one write or one object. A death in the middle leaves at most one torn last
line; opening repairs it by cutting it off and says so in `notes`. Anything else
that does not add up (a changed byte, a missing line, two lines with one number) is refused with file and line: a wrong
ledger is never read as a right one.
"""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from sweeper.core.errors import InputError, Problem
from sweeper.store.logs import Log, log_of
from sweeper.store.migrations import SCHEMA, STEPS, Step, migration
from sweeper.store.paths import ResultPaths


@dataclass(frozen=True)
class Event:
    """One fact.

    Parameters
    ----------
    n:
        Its number, from 0.
    t:
        When it was written: UTC seconds, by a clock that people set.
    s:
        Seconds since its session opened the ledger, by a clock that never jumps.
    kind:
        What happened.
    payload:
        What is to be said of it.
    """

    n: int
    t: float
    kind: str
    payload: dict[str, Any]
    s: float = 0.0


@dataclass
class Ledger:
    """An open ledger; a context manager that is the one writer. Use `Ledger.open` or `Ledger.read`."""

    notes: list[str] = field(default_factory=list)
    _events: list[Event] = field(default_factory=list)
    _log: Log | None = None
    _opened: float = field(default_factory=time.monotonic)
    _waiting: list[bytes] | None = None

    @classmethod
    def open(cls, paths: ResultPaths) -> Self:
        """Open for appending: takes the lock, creates, repairs or migrates what is there.

        Raises
        ------
        InputError
            When another process holds the lock, or the ledger is damaged before its last line.
        """
        log = log_of(paths)
        note = log.lock()
        try:
            lines, torn = log.read()
            schema, events = _parse(log.place, lines)
            log.start(lines)
            ledger = cls([note] if note else [], events, log)
            if torn:
                ledger.notes.append(f"{paths.ledger.name}: a torn last line of {torn} bytes was cut off")
            if not events:
                ledger.append("ledger_created", schema=SCHEMA)
            elif schema != SCHEMA:
                log.rewrite([_line(event) for event in events])
                ledger.notes.append(f"{paths.ledger.name}: migrated from schema {schema} to {SCHEMA}")
        except BaseException:
            log.close()
            raise
        return ledger

    @staticmethod
    def read(paths: ResultPaths) -> list[Event]:
        """Return the events without taking the lock: a torn last line, perhaps just being written, is left out."""
        log = log_of(paths)
        return _parse(log.place, log.read()[0])[1]

    def events(self) -> Iterator[Event]:
        """Iterate over all events, the oldest first."""
        return iter(self._events)

    def append(self, kind: str, **payload: Any) -> Event:
        """Write one event; it is durable when this returns, or at the end of a `together` around it.

        Raises
        ------
        OSError
            When the storage is full or gone. On a disk the file is cut back to its last whole line first.
        RunFailedError
            When another process has taken over the ledger of an object store.
        """
        assert self._log is not None, "the ledger is closed"
        event = self._next(kind, payload)
        if self._waiting is None:
            self._log.append(event.n, [_line(event)])
        else:
            self._waiting.append(_line(event))
        self._events.append(event)
        return event

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make the events of the block durable at its end, all at once: one sync of a disk, one object of a store.

        Nothing outside the process may act on them before. What was written is kept when the block raises. A death in
        the middle of it leaves the first of them, or none.

        Raises
        ------
        OSError, RunFailedError
            At the end, as `append` does; then none of the events is in the ledger.
        """
        if self._waiting is not None:  # within a larger one
            yield
            return
        first, self._waiting = len(self._events), []
        try:
            yield
        finally:
            lines, self._waiting = self._waiting, None
            if lines:
                assert self._log is not None, "the ledger is closed"
                try:
                    self._log.append(first, lines)
                except BaseException:
                    del self._events[first:]
                    raise

    def close(self) -> None:
        """Close the file and give the lock back."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self, kind: str, payload: dict[str, Any]) -> Event:
        return Event(len(self._events), time.time(), kind, payload, round(time.monotonic() - self._opened, 6))


class LedgerTail:
    """Reads a ledger that another process is writing, without its lock: each `poll` returns the events added since.

    Only whole lines are taken; a torn last line is read once it is whole, or never. Memory does not grow with the
    ledger. Of an object store it follows the local copy, so it must run where the writer runs.
    """

    def __init__(self, paths: ResultPaths) -> None:
        self.path = paths.ledger
        self._offset = 0
        self._number = 0
        self._step: Step | None = None

    def poll(self) -> list[Event]:
        """Return the new events, the oldest first; none when the file does not exist yet.

        Raises
        ------
        InputError
            When a line is damaged, or the writer took back what had been read: start again with a new tail.
        """
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._offset:
                    raise _damaged(str(self.path), self._number, "it was cut back after a failed write")
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        *lines, tail = content.split(b"\n")
        if lines and self._step is None:
            self._step = migration(_schema(str(self.path), lines[0]))
        events = [_event(str(self.path), self._number + index, line, self._step) for index, line in enumerate(lines)]
        self._offset += len(content) - len(tail)
        self._number += len(events)
        return events


def _line(event: Event) -> bytes:
    body = {"n": event.n, "t": event.t, "s": event.s, "kind": event.kind, **event.payload}
    try:
        text = json.dumps(body, separators=(",", ":"), allow_nan=False)
    except ValueError:  # a float that is not finite: rare, and only then every value is looked at
        text = json.dumps(_encode(body), separators=(",", ":"), allow_nan=False)
    return f'{text[:-1]},"crc":"{zlib.crc32(text.encode()):08x}"}}'.encode()


def _parse(place: str, lines: Sequence[bytes]) -> tuple[int, list[Event]]:
    """Return the schema in which the lines were written, and the events in today's."""
    if not lines:
        return SCHEMA, []
    schema = _schema(place, lines[0])
    step = migration(schema)
    return schema, [_event(place, number, line, step) for number, line in enumerate(lines)]


def _schema(place: str, line: bytes) -> int:
    """Return the schema that the first line names."""
    fields = _fields(place, 0, line)
    schema = fields.get("schema")
    if fields.get("kind") != "ledger_created" or not isinstance(schema, int) or schema not in (*STEPS, SCHEMA):
        remedy = "use the version of sweeper that wrote it"
        raise InputError(Problem(f"{place}:1", f"schema must be at most {SCHEMA}", str(schema), remedy))
    return schema


def _fields(place: str, number: int, line: bytes) -> dict[str, Any]:
    """Verify one line and return what it says."""
    body, separator, crc = line.rpartition(b',"crc":"')
    if not separator or crc != f'{zlib.crc32(body + b"}"):08x}"}}'.encode():
        raise _damaged(place, number, "its checksum does not fit")
    try:
        fields = _decode(json.loads(body + b"}"))
        if fields["n"] == number:
            return dict(fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(place, number, "it is no event") from None
    raise _damaged(place, number, "its number is out of order")


def _event(place: str, number: int, line: bytes, step: Step | None) -> Event:
    """Decode and verify one line."""
    fields = _fields(place, number, line)
    try:
        fields = step(fields) if step else fields
        t, s, kind = float(fields.pop("t")), float(fields.pop("s")), str(fields.pop("kind"))
    except (ValueError, KeyError, TypeError, OverflowError):
        raise _damaged(place, number, "it is no event") from None
    del fields["n"]
    return Event(number, t, kind, fields, s)


def _damaged(place: str, number: int, why: str) -> InputError:
    remedy = "restore the file from a backup; nothing was changed"
    return InputError(
        Problem(f"{place}:{number + 1}", "every line of the ledger must be as it was written", why, remedy)
    )


_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _encode(value: Any) -> Any:
    """Replace what JSON cannot say: floats that are not finite become ``{"float": "NaN"}``."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"float"} and value["float"] in _SPECIAL:
            return _SPECIAL[value["float"]]
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value
