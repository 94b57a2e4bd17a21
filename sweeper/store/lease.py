"""One writer per result folder in an object store: a lease that its holder renews.

The object ``lock.json`` names process, host and session, and carries a count that its holder raises every few seconds.
A dead process of this host is replaced at once. A holder elsewhere is watched: one whose count has not moved for
`LEASE_SECONDS` is taken to be dead. Nobody's clock is compared with anybody's.

Stores have no compare-and-set that all of them share, so a lease can be taken from a process that only slept. It
notices at its next renewal, and what it wrote since does not count: see the claims of `sweeper.store.segments`.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from contextlib import suppress
from typing import Any

from sweeper.core.errors import InputError, Problem, RunFailedError
from sweeper.store.lock import is_alive, myself
from sweeper.store.storage import ObjectStore

KEY = "lock.json"
BEAT_SECONDS = 5.0
LEASE_SECONDS = 30.0


class Lease:
    """The right to write to a prefix of an object store. Take it, release it; `check` before each write.

    Parameters
    ----------
    store:
        Where the result folder lies.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.session = uuid.uuid4().hex[:12]
        self._me = myself()
        self._store = store
        self._beat = 0
        self._taken_by: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> str | None:
        """Take the lease; return a note when a dead holder was replaced, else None.

        Raises
        ------
        InputError
            When a living process holds it. Finding that out of another host takes up to `LEASE_SECONDS`.
        """
        other = holder(self._store)
        note = None if other is None else self._judge(other)
        self._write()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()
        return note

    def check(self) -> None:
        """Raise when another process has taken the lease meanwhile.

        Raises
        ------
        RunFailedError
            Saying who has it.
        """
        if self._taken_by is not None:
            raise RunFailedError(
                f"{self._store.url}: {self._taken_by} has taken over; this process was silent too long"
            )

    def release(self) -> None:
        """Give the lease back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(OSError):  # then it runs out by itself
            if self._is_mine():
                self._store.delete(KEY)

    def _judge(self, other: dict[str, Any]) -> str:
        who = f"process {other.get('pid')} on {other.get('host')}"
        here = other.get("host") == self._me["host"]
        if here and not is_alive(other):
            return f"{who} had died with the lock; it was replaced"
        deadline = time.monotonic() + LEASE_SECONDS
        while not here and time.monotonic() < deadline:
            time.sleep(min(1.0, LEASE_SECONDS / 10))
            now = holder(self._store)
            if now is None:
                return f"{who} has just given the lock back"
            if now != other:
                break
        else:
            if not here:
                return f"{who} had been silent for {LEASE_SECONDS:g} s with the lock; it was replaced"
        remedy = "wait for it or end it; `sweeper status` shows where it stands"
        raise InputError(
            Problem(f"{self._store.url}/{KEY}", "only one process may write to a result folder", who, remedy)
        )

    def _renew(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                if not self._is_mine():
                    return
                self._write()
            except OSError:  # out of reach: writers find that out themselves
                continue

    def _is_mine(self) -> bool:
        other = holder(self._store)
        if other is None or other.get("session") == self.session:
            return True
        self._taken_by = f"process {other.get('pid')} on {other.get('host')}"
        return False

    def _write(self) -> None:
        self._beat += 1
        content = {**self._me, "session": self.session, "beat": self._beat}
        self._store.put(KEY, json.dumps(content).encode())


def holder(store: ObjectStore) -> dict[str, Any] | None:
    """Return who holds the lease by its own account, dead or alive, or None."""
    try:
        other = json.loads(store.get(KEY) or b"null")
    except ValueError:
        return None
    return other if isinstance(other, dict) else None
