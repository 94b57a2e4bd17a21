"""The machine itself as a cluster: the supervisor runs in the background, its driver starts a Ray on loopback."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sweeper.clusters.base import CopyFile, Launch, LaunchState, Start, Step, carry_out, copy_results
from sweeper.clusters.collect import questions, this_machine
from sweeper.clusters.doctor import ClusterFacts
from sweeper.clusters.launches import home_of
from sweeper.clusters.profiles import LocalProfile
from sweeper.clusters.supervise import words

POLL_SECONDS = 0.5


class LocalCluster:
    """A `Cluster` of one machine. The handle is ``PID:START``: a process's number may be given again, both not."""

    def __init__(self, profile: LocalProfile) -> None:
        self._profile = profile

    def steps(self, launch: Launch) -> Sequence[Step]:
        """Copy the package beside the log, then start the supervisor."""
        profile, home = self._profile, home_of(launch.name)
        package = home / "package.zip"
        command = words(
            profile.python or sys.executable,
            launch.name,
            package=str(package),
            folder=str(home),
            max_restarts=profile.max_restarts,
            check=launch.storage_path if profile.check else None,
            own_ray=True,
            overrides=launch.overrides,
        )
        return [
            CopyFile(source=launch.package, target=str(package)),
            Start(words=command, log=home / "log.txt", environment=profile.environment),
        ]

    def submit(self, launch: Launch) -> str:
        """Start it."""
        pid = ""
        for step in self.steps(launch):
            assert not isinstance(step, dict)
            pid = carry_out(step)  # type: ignore[arg-type]
        return f"{launch.name}:{pid}:{_started(int(pid))}"

    def state(self, handle: str) -> LaunchState:
        """Ask the supervisor's own record, and the system whether it lives."""
        name, pid, started = handle.split(":")
        record = read_state(home_of(name))
        if record and record["state"] != "RUNNING":
            return LaunchState(record["state"])
        if _started(int(pid)) == started:
            return LaunchState.RUNNING if record else LaunchState.PENDING
        record = read_state(home_of(name))  # it may have ended between the two looks
        return LaunchState(record["state"]) if record and record["state"] != "RUNNING" else LaunchState.LOST

    def logs(self, handle: str, *, follow: bool) -> Iterator[str]:
        """Yield the log file's lines."""
        log = home_of(handle.split(":")[0]) / "log.txt"
        return follow_file(log, (lambda: self.state(handle).is_final) if follow else None)

    def cancel(self, handle: str) -> None:
        """Signal the supervisor, which passes it on."""
        _, pid, started = handle.split(":")
        if _started(int(pid)) == started:
            os.kill(int(pid), signal.SIGTERM)

    def fetch(self, handle: str, results: str, target: Path) -> None:  # noqa: ARG002 - the protocol's signature
        """Copy the result folder."""
        copy_results(results, target)

    def facts(self, storage: str | None, wants: frozenset[str]) -> ClusterFacts:
        """Look at this machine; Ray is not started."""
        node = this_machine(questions(storage))
        return ClusterFacts(nodes=(node,), storage=storage, wants=wants, auth_expected=False)


def read_state(folder: Path) -> dict[str, Any] | None:
    """Return what a supervisor wrote last, None before that."""
    try:
        found: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found


def follow_file(path: Path, ended: Any = None) -> Iterator[str]:
    """Yield the lines of a file; with ``ended`` also those to come, until it says so."""
    while not path.exists():
        if ended is None or ended():
            return
        time.sleep(POLL_SECONDS)
    with path.open(errors="replace") as file:
        last = ended is None
        while True:
            if line := file.readline():
                yield line.rstrip("\n")
            elif last:
                return
            else:
                last = ended()  # one more look after the end: lines may have come since
                if not last:
                    time.sleep(POLL_SECONDS)


def _started(pid: int) -> str:
    """Return when a process began, in ticks since boot; empty when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    state, *fields = text.rpartition(")")[2].split()
    return "" if state == "Z" else fields[18]
