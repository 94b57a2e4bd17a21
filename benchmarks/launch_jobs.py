"""A study launched on a real Ray by the Jobs API: doctor, launch, logs, a driver killed, cancel, launch again, fetch.

    sudo python benchmarks/launch_jobs.py --json OUT.json

Starts a head with dashboard and token authentication (``ray start``) in namespaces that go with the script. The study
is real: two small models on scikit-learn's digits. Its driver is killed with SIGKILL while trials run; the supervisor
starts it anew and the study must end with every trial once. Exit code 1 when anything is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from chaos import Outcome, count_lost_and_doubled, make_models, write_study
from machine import facts, publish
from namespace import ADDRESS, bring_up, enter, is_inside

PATIENCE_SECONDS = 300.0


class Head:
    """A Ray head with a dashboard on loopback; it goes with the namespace."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.dashboard, self._log = 8265, folder / "head.log"
        ray = str(Path(sys.executable).with_name("ray"))
        words = [ray, "start", "--head", "--block", f"--node-ip-address={ADDRESS}", "--num-cpus=2"]
        words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}", "--include-dashboard=true"]
        words += ["--disable-usage-stats", f"--temp-dir={folder / 'ray'}"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                words, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=folder
            )

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def wait(self) -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.dashboard), timeout=1):
                return
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            time.sleep(0.2)
        raise RuntimeError(f"no dashboard; {self._log.read_text()[-2000:]}")


class Commands:
    """The command line under test."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.story: list[str] = []
        self._began = time.monotonic()

    def tell(self, text: str) -> None:
        self.story.append(f"{time.monotonic() - self._began:5.1f} s: {text}")
        print(self.story[-1], flush=True)

    def __call__(self, *words: str, code: int = 0, hide: Path | None = None) -> str:
        """Run a command; ``hide``: in a mount namespace in which a folder does not exist."""
        command = [sys.executable, "-m", "sweeper.cli", *words]
        if hide is not None:
            script = 'mount -t tmpfs none "$0" && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", script, str(hide.parent), *command]
        done = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        if done.returncode != code:
            raise RuntimeError(f"sweeper {' '.join(words)}: code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def wait(self, name: str, *states: str) -> str:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (state := json.loads(self("status", name, "--json"))["state"]) not in states:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} is {state} after {PATIENCE_SECONDS:g} s")
            time.sleep(1)
        return state


def driver_of(folder: Path) -> int:
    """Return the process that runs ``sweeper run`` on this campaign's cluster; 0: none."""
    mark = f"SWEEPER_STATE={folder / 'state'}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if words[1:4] == [b"-m", b"sweeper.cli", b"run"] and mark in (entry / "environ").read_bytes():
                return int(entry.name)
    return 0


def ended(results: Path) -> int:
    with suppress(FileNotFoundError):
        return (results / "ledger.jsonl").read_text().count('"kind":"trial_ended"')
    return 0


def examine(sweeper: Commands, study: Path, profile: Path) -> dict[str, Any]:
    """Let the doctor look, once with a wrong token."""
    wrong = profile.with_name("wrong.yaml")
    wrong.write_text(profile.read_text().replace("RAY_AUTH_TOKEN", "WRONG_TOKEN"))
    right = sweeper.environment
    sweeper.environment = right | {"WRONG_TOKEN": "0" * 64, "RAY_AUTH_MODE": "disabled"}
    said = sweeper("doctor", "--cluster", str(wrong), code=2)
    sweeper.environment = right
    refused = next(line for line in said.splitlines() if line.startswith("ERROR"))
    sweeper.tell(f"doctor with a wrong token: {refused}")
    report = json.loads(sweeper("doctor", str(study), "--cluster", str(profile), "--json"))
    levels = [finding["level"] for finding in report["findings"]]
    sweeper.tell(f"doctor: {levels.count('fine')} fine, {levels.count('warning')} warnings, no error")
    return {"wrong_token": refused, "findings": report["findings"]}


def campaign(folder: Path, trials: int, models: Path, *, doctor: bool) -> dict[str, Any]:
    """Go through the life of a launch."""
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",  # `cancel` lets the driver save
        "SWEEPER_STATE": str(folder / "state"),
    }
    study = write_study(models, folder / "study", trials, 3)
    storage = folder / "shared" / "results"
    head = Head(folder, environment)
    profile = folder / "cluster.yaml"
    profile.write_text(
        f"type: existing\naddress: {head.address}\ntoken: {{environment: RAY_AUTH_TOKEN}}\n"
        f"storage_path: {storage}\npython: {sys.executable}\ncheck: false\n"  # it is examined by hand below
    )
    sweeper = Commands(environment)
    results = storage / "chaos"
    try:
        head.wait()
        sweeper.tell("the head's dashboard answers")
        examined = examine(sweeper, study, profile) if doctor else {}
        name = json.loads(sweeper("launch", str(study), "--cluster", str(profile), "--json"))["name"]
        sweeper.tell(f"launched {name}")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while ended(results) < max(1, trials // 3):
            assert time.monotonic() < deadline, sweeper("logs", name)
            time.sleep(0.2)
        pid = driver_of(folder)
        os.kill(pid, signal.SIGKILL)
        at_kill = ended(results)
        sweeper.tell(f"driver {pid} killed after {at_kill} trials; status {sweeper.wait(name, 'RUNNING')}")
        while ended(results) <= at_kill:
            assert time.monotonic() < deadline, sweeper("logs", name)
            time.sleep(0.2)
        assert driver_of(folder) not in (0, pid)
        sweeper.tell("the supervisor started it anew, and trials go on")
        sweeper("cancel", name)
        sweeper.tell(
            f"cancelled: {sweeper.wait(name, 'STOPPED', 'SUCCEEDED', 'FAILED')}, {ended(results)} trials ended"
        )
        kept = ended(results)

        again = json.loads(sweeper("launch", str(study), "--cluster", str(profile), "--json"))["name"]
        log = sweeper("logs", again, "--follow")
        sweeper.tell(
            f"launched again as {again}: {sweeper.wait(again, 'SUCCEEDED', 'FAILED')}, {kept} trials were kept"
        )
        home = folder / "home"
        sweeper("fetch", again, "-o", str(home))
        sweeper.tell("fetched from the storage")
        far = folder / "far"
        sweeper("fetch", again, "-o", str(far), hide=storage)
        same = tables(far) == tables(home)
        sweeper.tell(f"fetched by a machine that does not see the storage: {'equal' if same else 'DIFFERENT'}")
        assert same
    except BaseException:
        print((folder / "head.log").read_text()[-2000:], file=sys.stderr)
        raise
    outcome = Outcome()
    count_lost_and_doubled(home, trials, outcome)
    return {
        "trials": pq.read_table(home / "trials.parquet").num_rows,
        "trials_lost": outcome.trials_lost,
        "trials_doubled": outcome.trials_doubled,
        "examples": outcome.examples,
        "doctor": examined,
        "log_tail": log.splitlines()[-3:],
        "story": sweeper.story,
        "token_in_files": tokens_in(folder, environment["RAY_AUTH_TOKEN"]),
    }


def tables(results: Path) -> dict[str, bytes]:
    """Return every file of a fetched folder."""
    return {str(p.relative_to(results)): p.read_bytes() for p in results.rglob("*") if p.is_file()}


def tokens_in(folder: Path, token: str) -> list[str]:
    """Return the files of ours that hold the token; Ray's own session folder is Ray's."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and "ray" not in path.relative_to(folder).parts[:1]:
            with suppress(OSError):
                if token.encode() in path.read_bytes():
                    found.append(str(path.relative_to(folder)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=6, help="search trials for each of the two models")
    parser.add_argument("--no-doctor", dest="doctor", action="store_false", help="do not examine the cluster first")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    if os.geteuid():
        parser.error("namespaces need root")
    if not is_inside():
        return enter()
    with tempfile.TemporaryDirectory(prefix="swj-", ignore_cleanup_errors=True) as name:  # Ray still writes logs
        folder = Path(name)
        bring_up("head", folder)
        make_models(folder / "models")
        report = campaign(folder, arguments.trials, folder / "models", doctor=arguments.doctor) | {"machine": facts()}
    publish(report, arguments.json)
    return bool(report["trials_lost"] or report["trials_doubled"] or report["token_in_files"])


if __name__ == "__main__":
    sys.exit(main())
