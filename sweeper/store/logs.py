"""Where the lines of a ledger lie: a file that grows, or the segments of an object store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from sweeper.store import lease, lock
from sweeper.store.paths import ResultPaths, replace_file, sync_folder
from sweeper.store.segments import SegmentLog, read_segments
from sweeper.store.storage import ObjectStore


class Log(Protocol):
    """Lines without their ends, numbered from 0. One writer at a time, any number of readers."""

    place: str
    """How messages name it."""

    def read(self) -> tuple[list[bytes], int]:
        """Return the whole lines, and the bytes of a torn line after them. Needs no lock."""
        ...

    def lock(self) -> str | None:
        """Become the writer; return a note when a dead one was replaced.

        Raises
        ------
        InputError
            When there is a living one.
        """
        ...

    def start(self, lines: Sequence[bytes]) -> None:
        """Get ready to append after ``lines``, all that `read` returned; a torn line is cut off."""
        ...

    def rewrite(self, lines: Sequence[bytes]) -> None:
        """Put ``lines`` in the place of all lines, at once or not at all; as many as there were."""
        ...

    def append(self, first: int, lines: Sequence[bytes]) -> None:
        """Add lines, of which the first has number ``first``; they are durable when this returns.

        Raises
        ------
        OSError
            When the storage failed.
        """
        ...

    def close(self) -> None:
        """Let another writer come."""
        ...

    def holder(self) -> dict[str, Any] | None:
        """Return ``host`` and ``pid`` of the writer, as far as one is known to live, or None."""
        ...


class FileLog:
    """A file on a local or mounted disk, synced after every append."""

    def __init__(self, paths: ResultPaths) -> None:
        self.place = str(paths.ledger)
        self._path, self._lock = paths.ledger, paths.lock
        self._file: BinaryIO | None = None

    def read(self) -> tuple[list[bytes], int]:
        """See `Log`."""
        try:
            *lines, tail = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return [], 0
        return lines, len(tail)

    def lock(self) -> str | None:
        """See `Log`."""
        return lock.take_lock(self._lock)

    def start(self, lines: Sequence[bytes]) -> None:
        """See `Log`."""
        self._file = self._path.open("ab")
        whole = sum(map(len, lines)) + len(lines)
        if self._file.tell() > whole:
            self._file.truncate(whole)
            os.fsync(self._file.fileno())
        if not lines:
            sync_folder(self._path.parent)

    def rewrite(self, lines: Sequence[bytes]) -> None:
        """See `Log`."""
        assert self._file is not None, "the log is closed"
        replace_file(self._path, lambda partial: partial.write_bytes(_joined(lines)))
        self._file.close()
        self._file = self._path.open("ab")

    def append(self, first: int, lines: Sequence[bytes]) -> None:  # noqa: ARG002 - a file knows its end
        """See `Log`. After a failure the file is cut back to its last whole line."""
        assert self._file is not None, "the log is closed"
        before = self._file.tell()
        try:
            self._file.write(_joined(lines))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            self._cut_back(before)
            raise

    def close(self) -> None:
        """See `Log`."""
        if self._file is not None:
            self._file.close()
            self._file = None
        lock.release_lock(self._lock)

    def holder(self) -> dict[str, Any] | None:
        """See `Log`."""
        return lock.holder(self._lock)

    def _cut_back(self, size: int) -> None:
        """Drop the buffer with its half line and open the file anew at its old end."""
        assert self._file is not None
        with suppress(OSError):  # the buffered half line cannot be written either, which is what we want
            self._file.close()
        os.truncate(self._path, size)
        self._file = self._path.open("ab")


class StoreLog:
    """Segments of an object store, and a copy in a local file for the readers of this machine.

    Parameters
    ----------
    copy:
        The local file; the store is the truth.
    """

    def __init__(self, store: ObjectStore, copy: Path) -> None:
        self.place = f"{store.url}/ledger"
        self._store = store
        self._copy = copy
        self._lease = lease.Lease(store)
        self._segments = SegmentLog(store, self._lease)
        self._failure: OSError | None = None

    def read(self) -> tuple[list[bytes], int]:
        """See `Log`."""
        return read_segments(self._store), 0

    def lock(self) -> str | None:
        """See `Log`."""
        return self._lease.take()

    def start(self, lines: Sequence[bytes]) -> None:
        """See `Log`."""
        self._segments.start(lines)
        replace_file(self._copy, lambda partial: partial.write_bytes(_joined(lines)))

    def rewrite(self, lines: Sequence[bytes]) -> None:
        """See `Log`."""
        self._segments.rewrite(lines)
        replace_file(self._copy, lambda partial: partial.write_bytes(_joined(lines)))

    def append(self, first: int, lines: Sequence[bytes]) -> None:
        """See `Log`. After a failure nothing more is taken: the store may hold the lines or not."""
        if self._failure is not None:
            raise self._failure
        try:
            self._segments.append(first, lines)
        except OSError as error:
            self._failure = error
            raise
        with self._copy.open("ab") as file:
            file.write(_joined(lines))

    def close(self) -> None:
        """See `Log`."""
        self._lease.release()

    def holder(self) -> dict[str, Any] | None:
        """See `Log`."""
        found = lease.holder(self._store)
        return found if found is not None and lock.is_alive(found) else None


def log_of(paths: ResultPaths) -> Log:
    """Return the log of a result folder."""
    storage = paths.storage
    return StoreLog(storage, paths.ledger) if isinstance(storage, ObjectStore) else FileLog(paths)


def _joined(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)
