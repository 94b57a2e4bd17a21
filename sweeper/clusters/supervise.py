"""What runs on the cluster: ``sweeper run`` again and again until the study is done, a bounded number of times.

    python -m sweeper.clusters.supervise --name NAME [--package ZIP --folder FOLDER] [KEY=VALUE]...

Ray's Jobs API starts a job once, so the driver's restarts are ours: the ledger makes ``run`` go on where it was. A
driver that ends with a wrong input (2) or on request (130) is not started again. The loop needs the standard library
alone: it must outlive whatever happens to Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

SOUND_SECONDS = 600.0  # a driver that lived so long did something: the count of restarts begins anew
PAUSE_SECONDS = 5.0  # before the first restart; doubled with each in a row, up to a minute
WRONG_INPUT, STOPPED = 2, 130


class Supervisor:
    """Keeps one driver alive.

    Parameters
    ----------
    command:
        The driver.
    max_restarts:
        Restarts in a row, none of which lived for `SOUND_SECONDS`.
    report:
        File that always says where things stand; None: nowhere.
    """

    def __init__(self, command: list[str], max_restarts: int, report: Path | None) -> None:
        self._command = command
        self._max_restarts = max_restarts
        self._report = report
        self._driver: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._starts = 0

    def run(self) -> int:
        """Return the exit code of the last driver."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        in_a_row = 0
        while True:
            began = time.monotonic()
            code = self._drive()
            if self._stopping and code != 0:
                return self._end(STOPPED, "stopped on request; all finished work is kept")
            if code == 0:
                return self._end(0, "done")
            if code in (WRONG_INPUT, STOPPED):
                return self._end(code, "the input is wrong" if code == WRONG_INPUT else "stopped")
            in_a_row = 1 if time.monotonic() - began > SOUND_SECONDS else in_a_row + 1
            if in_a_row > self._max_restarts:
                return self._end(code, f"the driver ended {in_a_row} times in a row, last with code {code}")
            pause = min(PAUSE_SECONDS * 2 ** (in_a_row - 1), 60.0)
            say(f"the driver ended with code {code}; it starts anew in {pause:g} s ({in_a_row}/{self._max_restarts})")
            self._note("RUNNING", code)
            self._wait(pause)
            if self._stopping:
                return self._end(STOPPED, "stopped on request; all finished work is kept")

    def _drive(self) -> int:
        self._starts += 1
        self._driver = subprocess.Popen(self._command)
        self._note("RUNNING", None)
        if self._stopping:  # the signal came while the process was being made
            self._driver.terminate()
        return self._driver.wait()

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < deadline:
            time.sleep(0.1)

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of handlers
        if not self._stopping:
            say("asked to stop; the driver saves what it has")
        self._stopping = True
        if self._driver is not None and self._driver.poll() is None:
            self._driver.send_signal(number)

    def _end(self, code: int, why: str) -> int:
        say(f"{why} (code {code}, {self._starts} start{'s' if self._starts > 1 else ''} of the driver)")
        self._note({0: "SUCCEEDED", STOPPED: "STOPPED"}.get(code, "FAILED"), code)
        return code

    def _note(self, state: str, code: int | None) -> None:
        if self._report is None:
            return
        facts: dict[str, Any] = {"state": state, "exit_code": code, "starts": self._starts, "pid": os.getpid()}
        if self._driver is not None:
            facts["driver_pid"] = self._driver.pid
        partial = self._report.with_name(self._report.name + ".partial")
        partial.write_text(json.dumps(facts) + "\n")
        partial.replace(self._report)


def say(text: str) -> None:
    """Say a line beside the driver's own, at once."""
    print(f"[supervisor] {text}", file=sys.stderr, flush=True)  # noqa: T201


def words(
    python: str,
    name: str,
    *,
    package: str | None = None,
    folder: str | None = None,
    max_restarts: int = 5,
    check: str | None = None,
    own_ray: bool = False,
    overrides: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Return the command line of a supervisor; see ``--help`` for what the parts mean."""
    found = [python, "-m", "sweeper.clusters.supervise", "--name", name, "--max-restarts", str(max_restarts)]
    found += ["--package", package] if package else []
    found += ["--folder", folder] if folder else []
    found += ["--check", check] if check else []
    found += ["--own-ray"] if own_ray else []
    return (*found, *overrides)


def main(arguments: list[str] | None = None) -> int:
    """Unpack where asked, examine where asked, then supervise; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="the launch")
    parser.add_argument("--package", help="zip file of the study; left out: the working directory holds it unpacked")
    parser.add_argument("--folder", type=Path, help="unpack there, and write state.json there")
    parser.add_argument("--max-restarts", type=int, default=5)
    parser.add_argument("--check", metavar="STORAGE", help="examine the cluster first, this storage included")
    parser.add_argument("--own-ray", action="store_true", help="start a Ray for the driver instead of joining one")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for sweeper run")
    given = parser.parse_args(arguments)
    home = Path.cwd()
    if given.folder is not None:
        home = given.folder / "study"
        given.folder.mkdir(parents=True, exist_ok=True)
    if given.package is not None:
        from sweeper.clusters.package import unpack

        unpack(Path(given.package), home)
    # A task of the study's own is imported from the package, here and in every process below.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    report = None if given.folder is None else given.folder / "state.json"
    if given.check is not None and (code := _examine(given.check, home)):
        return Supervisor([], 0, report)._end(code, "the doctor found what would end the study")
    command = [sys.executable, "-m", "sweeper.cli", "run", str(home / "study.yaml"), *given.overrides]
    if not given.own_ray:
        command.append("cluster.address=auto")
    say(f"{given.name}: {' '.join(command)}")
    return Supervisor(command, given.max_restarts, report).run()


def _examine(storage: str, home: Path) -> int:
    """Let the doctor look at the cluster this runs on; its errors are wrong input, as for any command."""
    command = [sys.executable, "-m", "sweeper.clusters.collect", "--storage", storage, "--study"]
    done = subprocess.run([*command, str(home / "study.yaml"), "--judge"], check=False)
    return WRONG_INPUT if done.returncode == WRONG_INPUT else 0


if __name__ == "__main__":
    sys.exit(main())
