r"""The ledger: an append-only list of events, and the only truth about a study.

Format: one JSON object a line, ``{"n": 0, "t": ..., "kind": ..., ..., "crc": "8 hex digits"}``, where ``crc`` is the
CRC-32 of the line without its crc field. ``n`` counts up from 0; the first event is ``ledger_created`` with the
schema version.

Durability: when `Ledger.append` has returned, the event is on disk (write, flush, fsync) and survives the death of
the process and of the machine. A death in the middle leaves at most one torn last line; opening repairs it by
cutting it off and says so in `notes`. Anything else that does not add up (a changed byte, a missing line, two
lines with one number) is refused with file and line: a wrong ledger is never read as a right one.
"""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from sweeper.core.errors import InputError, Problem
from sweeper.store.lock import release_lock, take_lock
from sweeper.store.paths import ResultPaths, sync_folder

SCHEMA = 1


@dataclass(frozen=True)
class Event:
    """One fact: its number, when it was written (UTC seconds), what kind it is and what it says."""

    n: int
    t: float
    kind: str
    payload: dict[str, Any]


@dataclass
class Ledger:
    """An open ledger; a context manager that holds the folder's lock. Use `Ledger.open` or `Ledger.read`."""

    path: Path
    lock: Path
    notes: list[str] = field(default_factory=list)
    _events: list[Event] = field(default_factory=list)
    _file: BinaryIO | None = None

    @classmethod
    def open(cls, paths: ResultPaths) -> Self:
        """Open for appending: takes the lock, creates or repairs the file.

        Raises
        ------
        InputError
            When another process holds the lock, or the file is damaged before its last line.
        """
        note = take_lock(paths.lock)
        try:
            events, good_bytes, torn = _parse(paths.ledger)
            ledger = cls(paths.ledger, paths.lock, [note] if note else [], events)
            ledger._file = paths.ledger.open("ab")
            if torn:
                ledger._file.truncate(good_bytes)
                os.fsync(ledger._file.fileno())
                ledger.notes.append(f"{paths.ledger.name}: a torn last line of {torn} bytes was cut off")
            if not events:
                ledger.append("ledger_created", schema=SCHEMA)
                sync_folder(paths.root)
        except BaseException:
            release_lock(paths.lock)
            raise
        return ledger

    @staticmethod
    def read(paths: ResultPaths) -> list[Event]:
        """Return the events without taking the lock: a torn last line, perhaps just being written, is left out."""
        return _parse(paths.ledger)[0]

    def events(self) -> Iterator[Event]:
        """Iterate over all events, the oldest first."""
        return iter(self._events)

    def append(self, kind: str, **payload: Any) -> Event:
        """Write one event; it is on disk when this returns.

        Raises
        ------
        OSError
            When the disk is full or gone. The file is cut back to its last whole line first.
        """
        assert self._file is not None, "the ledger is closed"
        event = Event(len(self._events), time.time(), kind, payload)
        before = self._file.tell()
        try:
            self._file.write(_line(event))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            self._cut_back(before)
            raise
        self._events.append(event)
        return event

    def close(self) -> None:
        """Close the file and give the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None
            release_lock(self.lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cut_back(self, size: int) -> None:
        """After a failed write: drop the buffer with its half line and open the file anew at its old end."""
        assert self._file is not None
        with suppress(OSError):  # the buffered half line cannot be written either, which is what we want
            self._file.close()
        os.truncate(self.path, size)
        self._file = self.path.open("ab")


class LedgerTail:
    """Reads a ledger that another process is writing, without its lock: each `poll` returns the events added since.

    Only whole lines are taken; a torn last line is read once it is whole, or never. Memory does not grow with the
    ledger.
    """

    def __init__(self, paths: ResultPaths) -> None:
        self.path = paths.ledger
        self._offset = 0
        self._number = 0

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
                    raise _damaged(self.path, self._number, "it was cut back after a failed write")
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        *lines, tail = content.split(b"\n")
        events = [_event(self.path, self._number + index, line) for index, line in enumerate(lines)]
        if events and self._number == 0:
            _check_schema(self.path, events[0])
        self._offset += len(content) - len(tail)
        self._number += len(events)
        return events


def _line(event: Event) -> bytes:
    body = {"n": event.n, "t": event.t, "kind": event.kind, **_encode(event.payload)}
    text = json.dumps(body, separators=(",", ":"), allow_nan=False)
    return f'{text[:-1]},"crc":"{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def _parse(path: Path) -> tuple[list[Event], int, int]:
    """Return the whole events, the bytes they take, and the length of a torn tail."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0, 0
    *lines, tail = content.split(b"\n")
    events = [_event(path, number, line) for number, line in enumerate(lines)]
    if events:
        _check_schema(path, events[0])
    return events, len(content) - len(tail), len(tail)


def _check_schema(path: Path, first: Event) -> None:
    schema = first.payload.get("schema")
    if first.kind != "ledger_created" or schema != SCHEMA:
        remedy = "use the version of sweeper that wrote it"
        raise InputError(Problem(f"{path}:1", f"schema must be {SCHEMA}", str(schema), remedy))


def _event(path: Path, number: int, line: bytes) -> Event:
    """Decode and verify one line."""
    body, separator, crc = line.rpartition(b',"crc":"')
    if not separator or crc != f'{zlib.crc32(body + b"}"):08x}"}}'.encode():
        raise _damaged(path, number, "its checksum does not fit")
    try:
        fields = _decode(json.loads(body + b"}"))
        found, event = fields.pop("n"), Event(number, float(fields.pop("t")), str(fields.pop("kind")), fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(path, number, "it is no event") from None
    if found != number:
        raise _damaged(path, number, "its number is out of order")
    return event


def _damaged(path: Path, number: int, why: str) -> InputError:
    remedy = "restore the file from a backup; nothing was changed"
    return InputError(
        Problem(f"{path}:{number + 1}", "every line of the ledger must be as it was written", why, remedy)
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
