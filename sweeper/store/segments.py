"""The ledger in an object store: immutable numbered objects, a few lines each.

``ledger/FIRST-LAST-GENERATION-SESSION.jsonl`` holds the lines FIRST to LAST. An object is written once and never
again: no writer can overwrite what another one wrote.

A session begins with a claim, the empty object ``claims/GENERATION-START-SESSION``: a number above all others, and how
many lines it found. From line START on, only lines of the highest generation count. So a process that slept while its
lease was taken may go on writing for a moment: every reader leaves its lines out, now and later. Two that claim at
the same time see each other's claim, because each lists after it wrote, and withdraw.

Many small objects are slow to read, so a session that finds many writes their lines again as one object, before it
removes them; readers take the longest object that begins at the line they need.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sweeper.core.errors import InputError, Problem
from sweeper.store.lease import Lease
from sweeper.store.storage import ObjectStore

LINES, CLAIMS = "ledger", "claims"
MERGE_ABOVE = 64  # objects: with 16 requests at a time, about a quarter of a second
_REQUESTS = 16
_SEGMENT = re.compile(r"(\d{8,})-(\d{8,})-(\d{4,})-([0-9a-f]+)\.jsonl")
_CLAIM = re.compile(r"(\d{4,})-(\d{8,})-([0-9a-f]+)")


@dataclass(frozen=True, order=True)
class _Segment:
    first: int
    last: int
    generation: int
    session: str

    @property
    def key(self) -> str:
        return f"{LINES}/{self.first:08d}-{self.last:08d}-{self.generation:04d}-{self.session}.jsonl"


@dataclass(frozen=True, order=True)
class _Claim:
    generation: int
    start: int
    session: str

    @property
    def key(self) -> str:
        return f"{CLAIMS}/{self.generation:04d}-{self.start:08d}-{self.session}"


def read_segments(store: ObjectStore) -> list[bytes]:
    """Return the lines that count, in order, without their ends.

    Raises
    ------
    InputError
        When lines are missing.
    """
    chosen = _chosen(store)
    with ThreadPoolExecutor(_REQUESTS) as pool:
        contents = list(pool.map(store.get, (segment.key for segment in chosen)))
    lines: list[bytes] = []
    for index, (segment, content) in enumerate(zip(chosen, contents, strict=True)):
        if content is None:  # merged and removed since it was listed
            return read_segments(store)
        if not content.endswith(b"\n") and index == len(chosen) - 1:
            break  # a store that shows half an object: its writer never heard that it was written
        lines += content.removesuffix(b"\n").split(b"\n")
        if len(lines) != segment.last + 1:
            raise _damaged(store, segment.key, f"it holds {len(lines) - segment.first} lines")
    return lines


class SegmentLog:
    """Appends to the ledger of an object store.

    Parameters
    ----------
    store:
        Where the result folder lies.
    lease:
        Taken.
    """

    def __init__(self, store: ObjectStore, lease: Lease) -> None:
        self._store = store
        self._lease = lease
        self._generation = 0

    def start(self, lines: Sequence[bytes]) -> None:
        """Claim the ledger from here on; ``lines`` are those that were found.

        Raises
        ------
        InputError
            When another process claimed it at the same moment.
        """
        highest = max((claim.generation for claim in _claims(self._store)), default=0)
        claim = _Claim(highest + 1, len(lines), self._lease.session)
        self._store.put(claim.key, b"")
        if any(other.generation >= claim.generation and other != claim for other in _claims(self._store)):
            self._store.delete(claim.key)
            raise InputError(
                Problem(
                    self._store.url,
                    "only one process may write to a result folder",
                    "another one just came",
                    "try again",
                )
            )
        self._generation = claim.generation
        merged = _chosen(self._store)
        if len(merged) > MERGE_ABOVE:
            self._put(0, lines)
            for segment in merged:
                self._store.delete(segment.key)

    def append(self, first: int, lines: Sequence[bytes]) -> None:
        """Write lines as one object; it is durable when this returns.

        Raises
        ------
        OSError
            When the store is out of reach. The lines may be there all the same: the number is used up, write no other
            lines under it.
        RunFailedError
            When another process has taken the ledger over.
        """
        self._lease.check()
        self._put(first, lines)

    def rewrite(self, lines: Sequence[bytes]) -> None:
        """Write all lines anew as one object, which then counts in the place of all others."""
        self._put(0, lines)

    def _put(self, first: int, lines: Sequence[bytes]) -> None:
        segment = _Segment(first, first + len(lines) - 1, self._generation, self._lease.session)
        self._store.put(segment.key, b"\n".join(lines) + b"\n")


def _claims(store: ObjectStore) -> list[_Claim]:
    found = (_CLAIM.fullmatch(name) for name in store.keys(CLAIMS))
    return [_Claim(int(match[1]), int(match[2]), match[3]) for match in found if match]


def _chosen(store: ObjectStore) -> list[_Segment]:
    """Return the objects that make up the ledger, in order."""
    found = (_SEGMENT.fullmatch(name) for name in store.keys(LINES))
    segments = [_Segment(int(m[1]), int(m[2]), int(m[3]), m[4]) for m in found if m]
    claims = _claims(store)

    def counts(segment: _Segment) -> bool:
        return not any(c.generation > segment.generation and c.start <= segment.first for c in claims)

    by_first: dict[int, _Segment] = {}
    for segment in sorted(filter(counts, segments)):  # of those with the same first line the longest comes last
        by_first[segment.first] = segment
    chosen: list[_Segment] = []
    at = 0
    while (segment := by_first.get(at)) is not None:  # type: ignore[assignment]
        chosen.append(segment)
        at = segment.last + 1
    beyond = [first for first in by_first if first >= at]
    if beyond:
        raise _damaged(store, f"{LINES}/{at:08d}-...", f"it is missing before line {min(beyond)}")
    return chosen


def _damaged(store: ObjectStore, key: str, why: str) -> InputError:
    rule = "every object of the ledger must be as it was written"
    return InputError(Problem(f"{store.url}/{key}", rule, why, "restore it from a backup; nothing was changed"))
