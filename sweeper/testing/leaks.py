"""What a run may have left behind on this machine: to be taken before a run and compared after it.

For tests and benchmarks. Looks at processes, shared memory, temporary folders, Ray's placement groups and actors, and
the result folder's lock, scratch and half-written files.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sweeper.store.temporary import left_behind

OUR_PROCESSES = ("ray::RayTrainWorker", "ray::TrainController", "ray::LaneTrainable", "ray::Exchange")
_OF_A_RUN = (".scratch/ray", ".scratch/snapshots", ".scratch/activations", "lock.json")


@dataclass(frozen=True)
class Inventory:
    """What there is now, each thing as a line of text."""

    things: frozenset[str]

    def since(self, before: Inventory) -> list[str]:
        """Return what was not there before, sorted."""
        return sorted(self.things - before.things)

    def counts(self) -> Counter[str]:
        """Return how many things of each kind there are; processes by the actor that they are."""
        return Counter(_kind(thing) for thing in self.things)


def take_inventory(results: Iterable[Path] = (), mark: str | None = None, temporary: Path | None = None) -> Inventory:
    """List what runs of this user could leave behind.

    Parameters
    ----------
    results:
        Result folders to look into.
    mark:
        ``NAME=VALUE`` that stands in the environment of every process of a run; None: the processes below this one
        that Ray named after our actors.
    temporary:
        Where a run's temporary folders would be; None: where this process's would be.
    """
    folders = left_behind(temporary or Path(tempfile.gettempdir()))
    things = {*_processes(mark), *_of_ray(), *(f"temporary folder {folder.name}" for folder in folders)}
    if mark is not None:  # segments say nothing of whose they are: look only where nobody else is at work
        things.update(_shared_memory())
    for folder in results:
        things.update(_in_results(folder))
    return Inventory(frozenset(things))


@contextmanager
def no_leaks(
    results: Iterable[Path] = (), *, mark: str | None = None, patience_seconds: float = 20.0
) -> Iterator[None]:
    """Assert that the block leaves nothing behind; processes get a moment to go.

    Raises
    ------
    AssertionError
        Naming what is left.
    """
    results = list(results)
    before = take_inventory(mark=mark)
    yield
    deadline = time.monotonic() + patience_seconds
    while (left := take_inventory(results, mark).since(before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, f"left behind: {left}"


@contextmanager
def no_growth(
    is_settled: Callable[[], bool], *, mark: str | None = None, patience_seconds: float = 60.0
) -> Iterator[None]:
    """Assert that after the block there are no more things of any kind than before: for lanes that live on.

    Parameters
    ----------
    is_settled:
        Whether everything that should be there is there; waited for before and after the block.

    Raises
    ------
    AssertionError
        Naming the kinds of which there are more, or saying that things did not settle.
    """

    def settled() -> Counter[str]:
        deadline = time.monotonic() + patience_seconds
        while not is_settled():
            assert time.monotonic() < deadline, f"not settled within {patience_seconds:g} s"
            time.sleep(0.1)
        return take_inventory(mark=mark).counts()

    before = settled()
    yield
    deadline = time.monotonic() + patience_seconds
    while (more := settled() - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not more, f"more than before: {dict(more)}"


def _kind(thing: str) -> str:
    first, _, rest = thing.partition(" ")
    if first != "process":
        return thing.rpartition(" ")[0] or thing
    return next((name for name in OUR_PROCESSES if name in rest), rest.partition(": ")[2])


def _processes(mark: str | None) -> Iterator[str]:
    parents: dict[int, int] = {}
    words: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            parents[pid] = int(parent)
            environment = b"" if mark is None else (entry / "environ").read_bytes()
            if state != "Z" and (mark is None or mark.encode() in environment.split(b"\0")):
                words[pid] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    for pid, text in words.items():
        if mark is not None or (_is_below(pid, os.getpid(), parents) and any(name in text for name in OUR_PROCESSES)):
            yield f"process {pid}: {text[:100]}"


def _is_below(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != root:
        pid = parents[pid]
    return pid == root


def _shared_memory() -> Iterator[str]:
    for path in _mine(Path("/dev/shm")):  # noqa: S108 - looked at, not written to
        yield f"shared memory {path.name}"


def _mine(folder: Path) -> Iterator[Path]:
    try:
        entries = list(folder.iterdir())
    except OSError:
        return
    for path in entries:
        try:
            if path.stat().st_uid == os.getuid():
                yield path
        except OSError:
            continue


def _of_ray() -> Iterator[str]:
    ray = sys.modules.get("ray")  # never imported for this alone
    if ray is None or not ray.is_initialized():
        return
    from ray.util import list_named_actors, placement_group_table

    for name, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            yield f"placement group {name}"
    for actor in list_named_actors(all_namespaces=True):
        if actor["namespace"] == "sweeper":
            yield f"actor {actor['name']}"


def _in_results(folder: Path) -> Iterator[str]:
    yield from (f"{folder}/{name}" for name in _OF_A_RUN if (folder / name).exists())
    for path in folder.rglob("*.partial"):
        yield str(path)
