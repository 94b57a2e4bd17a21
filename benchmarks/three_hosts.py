"""A study over three hosts, of which one is lost, one is cut off, and a fourth joins while it runs.

    sudo python benchmarks/three_hosts.py --json OUT.json
    sudo python benchmarks/three_hosts.py --s3 moto_server --workers 2     results in an S3-compatible server

Hosts are network namespaces of this machine, joined by a bridge, each with its own address and host name; Ray runs on
all of them with token authentication. A real study (two small models on scikit-learn's digits) is driven from the first
host, a lane on each. While the second or third host trains, every process of it is killed; while the other one trains,
its cable is pulled; then a fourth host joins. The study must end with every trial, epoch, confirmation and test once,
and each host must have had a lane. Needs root and ``ip`` (iproute2); touches only namespaces, links and processes that
it made. Exit code 1 when anything was lost or doubled, or a host had no part in it.

Without ``--s3`` the hosts share this machine's disk. With it each host sees, in a mount namespace of its own, a work
folder that is its alone (models, caches, Ray's files), and results lie in an S3-compatible server, run by the command
given (moto's, ``pip install moto[server]``) on a host of its own: what rests on a shared disk fails. ``--workers 2``
makes every lane of two workers on two hosts.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from chaos import Outcome, count_lost_and_doubled, make_models, write_study
from machine import facts, publish

from sweeper.store.ledger import LedgerTail
from sweeper.store.paths import ResultPaths
from sweeper.store.storage import below, working_copy

BRIDGE = "sweeper-br"
PORT = 6399
JOIN_SECONDS = 60.0
JOIN_TRIES = 4
WAIT_SECONDS = 240.0
END_SECONDS = 300.0
OBJECT_STORE = str(100 << 20)  # bytes; lanes keep nothing there
AGENTS = (
    *("--dashboard-agent-grpc-port", "20001", "--dashboard-agent-listen-port", "20002"),
    *("--metrics-export-port", "20003", "--runtime-env-agent-port", "20004"),
)
"""Given, because a raylet ends itself when its agents have not chosen theirs within 15 s, as on a busy machine."""
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


@contextmanager
def bridged_folder(*logs: str) -> Iterator[Path]:
    """Yield a temporary folder while a bridge stands that joins hosts; say in the end what its ``logs`` end with.

    Parameters
    ----------
    logs:
        Patterns of files below the folder.
    """
    if os.geteuid():
        sys.exit("network namespaces need root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave nothing behind then either
    sh("ip", "link", "add", BRIDGE, "type", "bridge")
    try:
        sh("ip", "link", "set", BRIDGE, "up")
        with tempfile.TemporaryDirectory(prefix="swh-") as name:
            try:
                yield Path(name)
            finally:
                for log in sorted(path for pattern in logs for path in Path(name).glob(pattern)):
                    print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
    finally:
        sh("ip", "link", "del", BRIDGE)


class Host:
    """A network namespace with an address and a host name.

    Parameters
    ----------
    number:
        Gives name and address.
    own:
        What this host alone sees at ``folder/view``; None: it sees what this machine sees.
    """

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
        script = f'hostname "$0" && mount --bind "{self._folder}/hosts" /etc/hosts'
        if self._own is not None:  # what the others have there is not to be seen
            script += f' && mount --bind "{self._own}" "{self._view}"'
        script += ' && exec "$@"'
        command = ["ip", "netns", "exec", self.name, "unshare", "--uts", "--mount", "sh", "-c", script, self.name]
        with (self._folder / f"{self.name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, *words], stdout=log, stderr=log, env=self._environment, start_new_session=True
            )
        self.processes.append(process)
        return process

    def ray(self, *words: str, num_cpus: int = 1) -> None:
        """Join or found the cluster; a busy machine may need more than one try."""
        ray = str(Path(sys.executable).with_name("ray"))
        common = ("--node-ip-address", self.address, "--num-cpus", str(num_cpus), "--disable-usage-stats", "--block")
        log = self._folder / f"{self.name}.log"
        for _ in range(JOIN_TRIES):
            said = log.stat().st_size if log.exists() else 0
            process = self.start(ray, "start", *words, "--object-store-memory", OBJECT_STORE, *common, *AGENTS)
            deadline = time.monotonic() + JOIN_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                if "Ray runtime started" in log.read_text(errors="replace")[said:]:
                    return
                time.sleep(0.2)
            self.kill()
        raise RuntimeError(f"{self.name} did not join in {JOIN_TRIES} tries")

    def holds_lane(self) -> bool:
        """Whether a worker of a lane runs here."""
        return self.count("ray::RayTrainWorker") > 0

    def count(self, program: str) -> int:
        """Return how many processes whose first word ends so run here."""
        found = 0
        for pid in self._pids():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                found += words[0].split(b" ")[0].endswith(program.encode())
        return found

    def unplug(self) -> None:
        """Pull the cable."""
        sh("ip", "link", "set", self._link, "down")

    def kill(self) -> None:
        """End every process of this host."""
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def remove(self) -> None:
        """Leave nothing behind."""
        self.kill()
        subprocess.run(["ip", "netns", "del", self.name], check=False)

    def _pids(self) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return list(map(int, found.stdout.split()))


class Watch:
    """Follows the ledger of the study."""

    def __init__(self, results: Path, driver: subprocess.Popen[bytes]) -> None:
        self._tail = LedgerTail(ResultPaths(results))
        self._driver = driver
        self.ended = 0
        self.running: dict[str, str] = {}
        self.started: Counter[str] = Counter()
        self.retries: list[str] = []

    def look(self) -> None:
        """Take what the ledger has got."""
        for event in self._tail.poll():
            if event.kind == "segment_started":
                self.running[event.payload["trial_id"]] = event.payload["node"]
                self.started[event.payload["node"]] += 1
            elif event.kind == "retry":
                self.retries.append(event.payload["reason"])
            elif event.kind in ("trial_ended", "trial_paused"):
                self.running.pop(event.payload["trial_id"], None)
                self.ended += event.kind == "trial_ended"

    def wait_for(self, count: int, hosts: Sequence[Host], workers: int) -> Host:
        """Wait until ``count`` trials have ended and one of ``hosts`` is in the middle of one; return that host.

        A lane of several workers is named by its first worker's host; the others are looked for among processes.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            self.look()
            names = set(self.running.values())
            if self.ended >= count and names:
                for host in hosts:
                    if host.name in names or (workers > 1 and host.holds_lane()):
                        return host
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


def name_hosts(folder: Path) -> None:
    """Write the file of names that every host sees."""
    lines = [f"10.77.31.{number} sweeper-h{number}\n" for number in range(1, 10)]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))


class Story:
    """What happens, told as it does."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.watch: Watch | None = None
        self._began = time.monotonic()

    def tell(self, text: str) -> None:
        """Add a line, with the time and how far the study is."""
        if self.watch is not None:
            self.watch.look()
        ended = self.watch.ended if self.watch else 0
        self.lines.append(f"{time.monotonic() - self._began:5.1f} s, {ended} trials ended: {text}")
        print(self.lines[-1], flush=True)


@dataclass(frozen=True)
class Scene:
    """Where everything lies, as each host sees it; ``results`` and ``own`` as they are seen from outside."""

    folder: Path
    environment: dict[str, str]
    study: Path
    results: Path
    own: list[Path] | list[None]
    overrides: list[str]
    server: ObjectServer | None


def make_environment(temporary: Path) -> dict[str, str]:
    """Return the environment of everything on the hosts: one token, and losses noticed soon."""
    return {
        **os.environ,
        **HEALTH,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "HF_HUB_OFFLINE": "1",
        "RAY_TMPDIR": str(temporary),
    }


def make_scene(folder: Path, options: argparse.Namespace, stack: ExitStack) -> Scene:
    """Write study and models, and start the object store where there is one; ``stack`` ends it."""
    environment = make_environment(folder / ("view/ray" if options.s3 else "ray"))
    name_hosts(folder)
    make_models(folder / "models")
    study = write_study(folder / "models", folder / "study", options.trials, 3)
    results = study.parent / "results" / "chaos"
    workers = options.workers
    overrides = [f"training.num_workers={workers}", "training.placement=spread"] if workers > 1 else []
    if not options.s3:
        return Scene(folder, environment, study, results, [None] * 4, overrides, None)
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    environment |= keys | {"SWEEPER_CACHE": str(folder / "view" / "cache")}
    own = own_folders(folder, study)
    server = ObjectServer(options.s3, folder, environment)
    stack.callback(server.host.remove)
    server.make_bucket()
    url = f"s3://sweeper/results?{server.options}"
    overrides.append(f"storage_path={url}")
    # The first host's working copy of the results, seen from outside: the ledger is followed there.
    results = own_of(own[0], folder, working_copy_of(below(url, "chaos"), environment))
    return Scene(folder, environment, folder / "view" / "study" / "study.yaml", results, own, overrides, server)


def study_over_hosts(scene: Scene, trials: int, workers: int, stack: ExitStack) -> dict[str, Any]:
    """Run the study through all the trouble; return what came of it. ``stack`` removes the hosts."""

    def host_number(number: int) -> Host:
        host = Host(number, scene.folder, scene.environment, scene.own[number - 1])
        stack.callback(host.remove)
        return host

    story = Story()
    hosts = [host_number(number) for number in (1, 2, 3)]
    took_part: set[str] = set()
    hosts[0].ray("--head", "--port", str(PORT), "--include-dashboard", "false")
    head = f"{hosts[0].address}:{PORT}"
    for host in hosts[1:]:
        host.ray("--address", head)
    story.tell("three hosts have joined")
    driver = hosts[0].start(
        *(sys.executable, "-m", "sweeper.cli", "run"), str(scene.study), f"cluster.address={head}", *scene.overrides
    )
    watch = story.watch = Watch(scene.results, driver)
    watch.wait_for(0, hosts, workers)
    story.tell("the first trial runs")
    lost = watch.wait_for(trials // 4, hosts[1:], workers)
    took_part |= {host.name for host in hosts if host.holds_lane()}
    lost.kill()
    story.tell(f"{lost.name} is killed")
    cut = watch.wait_for(trials // 2, [host for host in hosts[1:] if host is not lost], workers)
    took_part |= {host.name for host in hosts if host.holds_lane()}
    cut.unplug()
    story.tell(f"{cut.name} is cut off")
    hosts.append(host_number(4))
    hosts[3].ray("--address", head)
    story.tell(f"{hosts[3].name} has joined")
    added = watch.wait_for(trials // 2, hosts[3:], workers)
    took_part.add(added.name)
    story.tell(f"{added.name} trains")
    driver.wait(timeout=END_SECONDS)
    story.tell(f"the driver ended with code {driver.returncode}")
    results = scene.results
    if scene.server is not None:
        results = scene.folder / "home"
        story.tell(f"{scene.server.bring_home(results)} objects in the bucket")
        shutil.copy(scene.results / "ledger.jsonl", results)
    outcome = Outcome()
    count_lost_and_doubled(results, trials, outcome)
    table = pq.read_table(results / "trials.parquet").to_pylist()
    return {
        "exit_code": driver.returncode,
        "trials": len(table),
        "trials_by_last_node": Counter(row["node"] for row in table),
        "segments_by_node": watch.started,
        "hosts_with_lanes": sorted(took_part),
        "states": Counter(row["state"] for row in table),
        "num_retries": sum(row["num_retries"] for row in table),
        "retries": watch.retries,
        "trials_lost": outcome.trials_lost,
        "trials_doubled": outcome.trials_doubled,
        "examples": outcome.examples,
        "story": story.lines,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60, help="search trials for each of the two models")
    parser.add_argument("--s3", metavar="COMMAND", help="moto's server: results there, and no disk in common")
    parser.add_argument("--workers", type=int, default=1, choices=(1, 2), help="of a lane, each on a host of its own")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with bridged_folder("*.log") as folder, ExitStack() as stack:
        scene = make_scene(folder, options, stack)
        report = study_over_hosts(scene, options.trials, options.workers, stack) | {"machine": facts()}
    publish(report, options.json)
    sound = report["exit_code"] == 0 and not report["trials_lost"] and not report["trials_doubled"]
    return not (sound and len(report["hosts_with_lanes"]) == 4)


if __name__ == "__main__":
    sys.exit(main())
