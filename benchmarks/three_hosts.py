"""A study over three hosts, of which one is lost, one is cut off, and a fourth joins while it runs.

    sudo python benchmarks/three_hosts.py --json OUT.json
    sudo python benchmarks/three_hosts.py --s3 moto_server --workers 2     results in an S3-compatible server

Hosts are network namespaces of this machine, joined by a bridge, each with its own address and host name; Ray runs on
all of them with token authentication. A real study (two small models on scikit-learn's digits) is driven from the first
host, a lane on each. While the second host trains, every process of it is killed; while the third trains, its cable is
pulled; then a fourth host joins. The study must end with every trial, epoch, confirmation and test once, and each host
must have had trials. Needs root and ``ip`` (iproute2); touches only namespaces, links and processes that it made.
Exit code 1 when anything was lost or doubled, or a host had no part in it.

Without ``--s3`` the hosts share this machine's disk. With it each host sees, in a mount namespace of its own, a work
folder that is its alone (models, caches, Ray's files), and results lie in an S3-compatible server, run by the command
given (moto's, ``pip install moto[server]``) on a host of its own: what rests on a shared disk fails. ``--workers 2``
makes every lane of two workers on two hosts.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
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
from sweeper.store.storage import below, working_copy

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

    def __init__(self, number: int, folder: Path, environment: dict[str, str], own: Path | None = None) -> None:
        self.name, self.address = f"sweeper-h{number}", f"10.77.31.{number}"
        self._link, self._folder, self._environment = f"swh{number}", folder, environment
        self._own, self._view = own, folder / "view"
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
        if self._own is not None:  # what the others have there is not to be seen
            script = f'mount --bind "{self._own}" "{self._view}" && {script}'
        spaces = ["--uts", "--mount"] if self._own is not None else ["--uts"]
        command = ["ip", "netns", "exec", self.name, "unshare", *spaces, "sh", "-c", script, self.name, *words]
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
        while self.look() or self.ended < count or (node and node not in self.running.values()):
            if self._driver.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.ended} trials ended, {self.started} started; driver {self._driver.poll()}")
            time.sleep(0.02)


def working_copy_of(url: str, environment: dict[str, str]) -> Path:
    """Return where a host keeps its working copy of a result folder."""
    os.environ["SWEEPER_CACHE"] = environment["SWEEPER_CACHE"]
    return working_copy(url, "runs")


def own_of(own: Path | None, folder: Path, path: Path) -> Path:
    """Return what a host sees at a path below its view, as it is seen from outside."""
    assert own is not None
    return own / path.relative_to(folder / "view")


class ObjectServer:
    """An S3-compatible server on a host of its own."""

    def __init__(self, command: str, folder: Path, environment: dict[str, str]) -> None:
        self.host = Host(9, folder, environment)
        self.host.start(command, "-H", self.host.address, "-p", "9000")
        self.options = f"endpoint_override={self.host.address}:9000&scheme=http&region=us-east-1"
        self._environment = environment

    def run(self, script: str, *words: str) -> str:
        """Run Python with pyarrow's view of the server as ``system``, on the server's host."""
        head = (
            "import sys, pathlib; from pyarrow import fs\n"
            f"system = fs.S3FileSystem(endpoint_override='{self.host.address}:9000', scheme='http', "
            "region='us-east-1', allow_bucket_creation=True)\n"
        )
        command = ["ip", "netns", "exec", self.host.name, sys.executable, "-c", head + script, *words]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return done.stdout

    def make_bucket(self) -> None:
        """Make the bucket as soon as the server answers."""
        deadline = time.monotonic() + JOIN_SECONDS
        while True:
            try:
                self.run("system.create_dir('sweeper')")
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
            else:
                return

    def bring_home(self, target: Path) -> int:
        """Copy every object of the study, and return how many there are."""
        script = (
            "found = system.get_file_info(fs.FileSelector('sweeper/results/chaos', recursive=True))\n"
            "for one in found:\n"
            "    if one.type is fs.FileType.File:\n"
            "        to = pathlib.Path(sys.argv[1]) / one.path[len('sweeper/results/chaos/'):]\n"
            "        to.parent.mkdir(parents=True, exist_ok=True)\n"
            "        to.write_bytes(system.open_input_stream(one.path).read())\n"
            "print(sum(one.type is fs.FileType.File for one in found))"
        )
        return int(self.run(script, str(target)))


def own_folders(folder: Path, study: Path) -> list[Path]:
    """Return a work folder for each host, with copies of the study and its models; made before the hosts are."""
    (folder / "view").mkdir()
    found = []
    for number in range(1, 5):
        own = folder / f"own-{number}"
        shutil.copytree(study.parent, own / "study")  # follows links: the models themselves
        found.append(own)
    return found


def study_over_hosts(folder: Path, trials: int, s3: str | None, workers: int) -> dict[str, Any]:
    """Run the study through all the trouble; return what came of it."""
    environment = {
        **os.environ,
        **HEALTH,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "HF_HUB_OFFLINE": "1",
        "RAY_TMPDIR": str(folder / ("view/ray" if s3 else "ray")),
    }
    if s3:
        keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
        environment |= keys | {"SWEEPER_CACHE": str(folder / "view" / "cache")}
    make_models(folder / "models")
    study = write_study(folder / "models", folder / "study", trials, 3)
    results = study.parent / "results" / "chaos"
    own: list[Path] | list[None] = own_folders(folder, study) if s3 else [None] * 4
    server = ObjectServer(s3, folder, environment) if s3 else None
    overrides = [f"training.num_workers={workers}", "training.placement=spread"] if workers > 1 else []
    if server is not None:
        server.make_bucket()
        study = folder / "view" / "study" / "study.yaml"
        url = f"s3://sweeper/results?{server.options}"
        overrides.append(f"storage_path={url}")
        # The first host's working copy of the results, seen from outside: the ledger is followed there.
        results = own_of(own[0], folder, working_copy_of(below(url, "chaos"), environment))
    story: list[str] = []
    began = time.monotonic()
    watch: Watch | None = None

    def tell(text: str) -> None:
        if watch is not None:
            watch.look()
        story.append(f"{time.monotonic() - began:5.1f} s, {watch.ended if watch else 0} trials ended: {text}")
        print(story[-1], flush=True)

    hosts = [Host(number, folder, environment, own[number - 1]) for number in (1, 2, 3)]
    try:
        hosts[0].ray("--head", "--port", str(PORT), "--include-dashboard", "false")
        for host in hosts[1:]:
            host.ray("--address", f"{hosts[0].address}:{PORT}")
        tell("three hosts have joined")
        address = f"cluster.address={hosts[0].address}:{PORT}"
        driver = hosts[0].start(sys.executable, "-m", "sweeper.cli", "run", str(study), address, *overrides)
        watch = Watch(results, driver)
        watch.wait_for(hosts[0].name, 0, WAIT_SECONDS)
        tell("the first trial runs")
        if workers == 1:
            watch.wait_for(hosts[1].name, trials // 4, WAIT_SECONDS)
        else:  # a lane is named by its first worker's host; the second one may lie on any
            watch.wait_for("", trials // 4, WAIT_SECONDS)
        hosts[1].kill()
        tell("the second host is killed")
        watch.wait_for(hosts[2].name if workers == 1 else "", trials // 2, WAIT_SECONDS)
        hosts[2].unplug()
        tell("the third host is cut off")
        hosts.append(Host(4, folder, environment, own[3]))
        hosts[3].ray("--address", f"{hosts[0].address}:{PORT}")
        tell("a fourth host has joined")
        driver.wait(timeout=300)
        tell(f"the driver ended with code {driver.returncode}")
        if server is not None:
            ledger = results / "ledger.jsonl"
            results = folder / "home"
            tell(f"{server.bring_home(results)} objects in the bucket")
            shutil.copy(ledger, results)
    finally:
        for host in [*hosts, *([server.host] if server is not None else [])]:
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
    parser.add_argument("--s3", metavar="COMMAND", help="moto's server: results there, and no disk in common")
    parser.add_argument("--workers", type=int, default=1, choices=(1, 2), help="of a lane, each on a host of its own")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    if os.geteuid():
        parser.error("network namespaces need root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave nothing behind then either
    sh("ip", "link", "add", BRIDGE, "type", "bridge")
    try:
        sh("ip", "link", "set", BRIDGE, "up")
        with tempfile.TemporaryDirectory(prefix="swh-") as name:
            try:
                report = study_over_hosts(Path(name), arguments.trials, arguments.s3, arguments.workers) | {
                    "machine": facts()
                }
            finally:
                for log in sorted(Path(name).glob("*.log")):
                    print(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}", file=sys.stderr)
    finally:
        sh("ip", "link", "del", BRIDGE)
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    sound = report["exit_code"] == 0 and not report["trials_lost"] and not report["trials_doubled"]
    # With lanes of two hosts only the first worker's host is named.
    return not (sound and len(report["segments_by_node"]) >= (4 if arguments.workers == 1 else 2))


if __name__ == "__main__":
    sys.exit(main())
