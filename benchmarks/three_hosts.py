"""A study over three hosts, of which one is lost, one is cut off, and a fourth joins while it runs.

    sudo python benchmarks/three_hosts.py --json OUT.json

Hosts are network namespaces of this machine, joined by a bridge, each with its own address and host name; Ray runs on
all of them with token authentication. A real study (two small models on scikit-learn's digits) is driven from the first
host, a lane on each. While the second host trains, every process of it is killed; while the third trains, its cable is
pulled; then a fourth host joins. The study must end with every trial, epoch, confirmation and test once, and each host
must have had trials. Needs root and ``ip`` (iproute2); touches only namespaces, links and processes that it made. The
hosts share this machine's disk. Exit code 1 when anything was lost or doubled, or a host had no part in it.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from chaos import Outcome, count_lost_and_doubled, make_models, write_study
from machine import facts

from sweeper.store.ledger import LedgerTail
from sweeper.store.paths import ResultPaths

BRIDGE = "sweeper-br"
PORT = 6399
JOIN_SECONDS = 60.0
JOIN_TRIES = 4
WAIT_SECONDS = 300.0
HEALTH = {
    "RAY_maximum_startup_concurrency": "4",  # one at a time, one a CPU, would take minutes here
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""A host that is silent for about six seconds counts as lost; Ray's defaults take half a minute."""


def sh(*words: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


class Host:
    """A network namespace with an address and a host name."""

    def __init__(self, number: int, folder: Path, environment: dict[str, str]) -> None:
        self.name, self.address = f"sweeper-h{number}", f"10.77.31.{number}"
        self._link, self._folder, self._environment = f"swh{number}", folder, environment
        self.processes: list[subprocess.Popen[bytes]] = []
        sh("ip", "netns", "add", self.name)
        sh("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        sh("ip", "link", "set", self._link, "master", BRIDGE, "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", "10.77.31.254"),
        ):
            sh("ip", "-n", self.name, *words)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command on this host."""
        script = 'hostname "$0"; exec "$@"'
        command = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", script, self.name, *words]
        with (self._folder / f"{self.name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment, start_new_session=True)
        self.processes.append(process)
        return process

    def ray(self, *words: str) -> None:
        """Join or found the cluster; a busy machine may need more than one try."""
        ray = str(Path(sys.executable).with_name("ray"))
        common = ("--node-ip-address", self.address, "--num-cpus", "1", "--disable-usage-stats", "--block")
        log = self._folder / f"{self.name}.log"
        for _ in range(JOIN_TRIES):
            said = log.stat().st_size if log.exists() else 0
            process = self.start(ray, "start", *words, *common)
            deadline = time.monotonic() + JOIN_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                if "Ray runtime started" in log.read_text(errors="replace")[said:]:
                    return
                time.sleep(0.2)
            self.kill()
        raise RuntimeError(f"{self.name} did not join in {JOIN_TRIES} tries")

    def unplug(self) -> None:
        """Pull the cable."""
        sh("ip", "link", "set", self._link, "down")

    def kill(self) -> None:
        """End every process of this host."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        for pid in map(int, found.stdout.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def remove(self) -> None:
        """Leave nothing behind."""
        self.kill()
        subprocess.run(["ip", "netns", "del", self.name], check=False)


class Watch:
    """Follows the ledger of the study."""

    def __init__(self, results: Path, driver: subprocess.Popen[bytes]) -> None:
        self._tail = LedgerTail(ResultPaths(results))
        self._driver = driver
        self.ended = 0
        self.running: dict[str, str] = {}
        self.started: Counter[str] = Counter()

    def look(self) -> None:
        """Take what the ledger has got."""
        for event in self._tail.poll():
            if event.kind == "segment_started":
                self.running[event.payload["trial_id"]] = event.payload["node"]
                self.started[event.payload["node"]] += 1
            elif event.kind == "trial_ended":
                self.running.pop(event.payload["trial_id"], None)
                self.ended += 1

    def wait_for(self, node: str, count: int, seconds: float) -> None:
        """Wait until ``count`` trials have ended and ``node`` is in the middle of a trial."""
        deadline = time.monotonic() + seconds
        while self.look() or self.ended < count or node not in self.running.values():
            if self._driver.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.ended} trials ended, {self.started} started; driver {self._driver.poll()}")
            time.sleep(0.02)


def study_over_hosts(folder: Path, trials: int) -> dict[str, Any]:
    """Run the study through all the trouble; return what came of it."""
    environment = {
        **os.environ,
        **HEALTH,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "HF_HUB_OFFLINE": "1",
        "RAY_TMPDIR": str(folder / "ray"),
    }
    make_models(folder / "models")
    study = write_study(folder / "models", folder / "study", trials, 3)
    results = study.parent / "results" / "chaos"
    story: list[str] = []
    began = time.monotonic()
    watch: Watch | None = None

    def tell(text: str) -> None:
        if watch is not None:
            watch.look()
        story.append(f"{time.monotonic() - began:5.1f} s, {watch.ended if watch else 0} trials ended: {text}")
        print(story[-1], flush=True)

    hosts = [Host(number, folder, environment) for number in (1, 2, 3)]
    try:
        hosts[0].ray("--head", "--port", str(PORT), "--include-dashboard", "false")
        for host in hosts[1:]:
            host.ray("--address", f"{hosts[0].address}:{PORT}")
        tell("three hosts have joined")
        address = f"cluster.address={hosts[0].address}:{PORT}"
        driver = hosts[0].start(sys.executable, "-m", "sweeper.cli", "run", str(study), address)
        watch = Watch(results, driver)
        watch.wait_for(hosts[0].name, 0, WAIT_SECONDS)
        tell("the first trial runs")
        watch.wait_for(hosts[1].name, trials // 4, WAIT_SECONDS)
        hosts[1].kill()
        tell("the second host is killed")
        watch.wait_for(hosts[2].name, trials // 2, WAIT_SECONDS)
        hosts[2].unplug()
        tell("the third host is cut off")
        hosts.append(Host(4, folder, environment))
        hosts[3].ray("--address", f"{hosts[0].address}:{PORT}")
        tell("a fourth host has joined")
        driver.wait(timeout=300)
        tell(f"the driver ended with code {driver.returncode}")
    finally:
        for host in hosts:
            host.remove()
    outcome = Outcome()
    count_lost_and_doubled(results, trials, outcome)
    table = pq.read_table(results / "trials.parquet").to_pylist()
    return {
        "exit_code": driver.returncode,
        "trials": len(table),
        "trials_by_last_node": Counter(row["node"] for row in table),
        "segments_by_node": watch.started,
        "states": Counter(row["state"] for row in table),
        "num_retries": sum(row["num_retries"] for row in table),
        "trials_lost": outcome.trials_lost,
        "trials_doubled": outcome.trials_doubled,
        "examples": outcome.examples,
        "story": story,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60, help="search trials for each of the two models")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    if os.geteuid():
        parser.error("network namespaces need root")
    sh("ip", "link", "add", BRIDGE, "type", "bridge")
    try:
        sh("ip", "link", "set", BRIDGE, "up")
        with tempfile.TemporaryDirectory(prefix="swh-") as name:
            try:
                report = study_over_hosts(Path(name), arguments.trials) | {"machine": facts()}
            finally:
                for log in sorted(Path(name).glob("*.log")):
                    print(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}", file=sys.stderr)
    finally:
        sh("ip", "link", "del", BRIDGE)
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    sound = report["exit_code"] == 0 and not report["trials_lost"] and not report["trials_doubled"]
    return not (sound and len(report["segments_by_node"]) == 4)


if __name__ == "__main__":
    sys.exit(main())
