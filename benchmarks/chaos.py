"""Kill a real study again and again, resume it, and compare every row with an undisturbed run.

    python benchmarks/chaos.py --kills 20 --seed 0 --json OUT.json

Two small models on scikit-learn's digits, one lane: the reference. Then the same study, in which the driver or a
random process of its run (Ray's own, lanes, Tune's actors) is ended by SIGKILL at random moments and ``sweeper
resume`` is called until the study is done; a study that ends before all kills are spent is followed by a fresh one.
Trials, measurements, confirmations, predictions and test openings are compared row by row, without the columns that
only the clock decides. Then the same with two lanes, where only nothing lost and nothing doubled can be asked.
Exit code 1 when anything was lost, doubled, different or left behind.

With ``--s3 moto_server`` the disturbed studies have their results in an S3-compatible server, run by the command given
(moto's, ``pip install moto[server]``) on loopback, and every session begins on an empty disk: what is compared, with a
reference on a local disk, is what the bucket holds.

With ``--home FOLDER --seconds N`` it stops after about N seconds, by a last kill, and a further call with the same
options goes on there, as often as is needed; exit code 3 until then.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow.parquet as pq
from machine import facts, publish

from sweeper.store.storage import below, working_copy
from sweeper.testing.leaks import Inventory, take_inventory
from sweeper.workflows.results import readable

TABLES = ("trials", "measurements", "confirmations", "predictions")
TIMES = {"elapsed_seconds", "device_seconds", "started_at", "finished_at", "node", "num_retries"}
MARK = "SWEEPER_CHAOS"  # in the environment of every process of a run: how they are found
STUCK_SECONDS = 300.0  # a session whose ledger does not grow for so long is counted as stuck and killed
SNAPSHOT_SECONDS = 0.1  # so often that some trials go on in their middle and others start again
LEAVE_SECONDS = 60.0  # what Ray's processes are given to go after their driver

STUDY = """
schema: 1
name: chaos
task:
  type: image-classification
  data: {{train: "builtin:digits?classes=5-9", validation: 0.2, test: 0.3}}
  metric: {{name: accuracy}}
models:
  - {{name: vit, checkpoint: vit}}
  - {{name: resnet, checkpoint: resnet}}
search:
  space: space.yaml
  num_trials: {trials}
  max_epochs: 4
  max_concurrent_trials: {lanes}
training: {{snapshot_seconds: {snapshots}}}
confirm: {{num_seeds: 2}}
"""

SPACE = """
source: chaos
parameters:
  learning_rate: {type: float, low: 1e-4, high: 3e-2, log: true}
  batch_size: {type: categorical, choices: [16, 32, 64]}
  dropout: {type: float, low: 0.0, high: 0.3}
  unfreezing: {type: categorical, choices: [full, head_only, gradual, last_blocks, head_then_full]}
  num_unfrozen_blocks: {type: int, low: 1, high: 2, when: {unfreezing: last_blocks}}
  epochs_per_stage: {type: int, low: 1, high: 2, when: {unfreezing: gradual}}
default: {learning_rate: 3e-3, batch_size: 32, dropout: 0.1, unfreezing: full}
"""


def make_models(folder: Path) -> None:
    """Save a ViT and a ResNet of random weights: what they learn is not the point here."""
    import torch
    import transformers as hf

    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    vit = hf.ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
    )
    resnet = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1], layer_type="basic")
    for name, body in (("vit", hf.ViTModel(vit)), ("resnet", hf.ResNetModel(resnet))):
        body.save_pretrained(folder / name)
        size = {"height": 16, "width": 16} if name == "vit" else {"shortest_edge": 16}
        kind = "ViTImageProcessor" if name == "vit" else "ConvNextImageProcessor"
        (folder / name / "preprocessor_config.json").write_text(
            json.dumps({"image_processor_type": kind, "size": size, "crop_pct": 1.0, "do_resize": True})
        )


def write_study(models: Path, folder: Path, trials: int, lanes: int) -> Path:
    """Write a study that uses the models of ``models``."""
    folder.mkdir(parents=True)
    for name in ("vit", "resnet"):
        (folder / name).symlink_to(models / name)
    (folder / "space.yaml").write_text(SPACE)
    (folder / "study.yaml").write_text(STUDY.format(trials=trials, lanes=lanes, snapshots=SNAPSHOT_SECONDS))
    return folder / "study.yaml"


class ObjectServer:
    """An S3-compatible server on loopback, and where in it the results of each study lie. A context manager."""

    def __init__(self, command: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
        os.environ |= keys  # of this process too, which reads the results
        host, _, port = self.address.partition(":")
        with (folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen([command, "-H", host, "-p", port], stdout=log, stderr=log)

    def __enter__(self) -> Self:
        from pyarrow import fs

        system = fs.S3FileSystem(
            endpoint_override=self.address, scheme="http", region="us-east-1", allow_bucket_creation=True
        )
        deadline = time.monotonic() + LEAVE_SECONDS
        while True:
            try:
                system.create_dir("chaos")
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
            else:
                return self

    def __exit__(self, *failure: object) -> None:
        self._process.terminate()
        self._process.wait()

    def storage_path(self, study: Path) -> str:
        """Return the ``storage_path`` of a study."""
        name = f"{study.parent.parent.name}/{study.parent.name}"
        return f"s3://chaos/{name}?endpoint_override={self.address}&scheme=http&region=us-east-1"

    def bring_home(self, study: Path) -> Path:
        """Return a folder with what the bucket holds of a study's results."""
        os.environ["SWEEPER_CACHE"] = str(study.parent / "home")
        return readable(below(self.storage_path(study), "chaos")).root


class Session:
    """One ``sweeper run`` in a process of its own; with a ``server`` on a disk that knows nothing of earlier ones."""

    def __init__(self, study: Path, server: ObjectServer | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self.marking = f"{MARK}={self.mark}"
        self.results = study.parent / "results" / "chaos"
        self.cache = study.parent / f"disk-{self.mark[:8]}"
        words = [sys.executable, "-m", "sweeper.cli", "run", str(study)]
        if server is not None:
            words.append(f"storage_path={server.storage_path(study)}")
            os.environ["SWEEPER_CACHE"] = str(self.cache)
            self.results = working_copy(below(server.storage_path(study), "chaos"), "runs")
        self.temporary = study.parent / "tmp"
        self.temporary.mkdir(exist_ok=True)
        environment = os.environ | {
            MARK: self.mark,
            "HF_HUB_OFFLINE": "1",
            "RAY_AUTH_MODE": "disabled",
            "TMPDIR": str(self.temporary),
            "RAY_TMPDIR": os.environ.get("RAY_TMPDIR", "/tmp"),  # its sockets need short names
        }
        self.log = study.parent / f"session-{self.mark[:8]}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)

    def left_behind(self, before: Inventory) -> list[str]:
        """Name what is there, after the run's end, that was not there before."""
        return take_inventory([self.results], self.marking, self.temporary).since(before)

    def processes(self) -> list[int]:
        """All living processes of this run, the driver's first."""
        others = [pid for pid in _marked(self.mark) if pid != self.process.pid]
        return [*([self.process.pid] if self.process.poll() is None else []), *sorted(others)]

    def progress(self) -> int:
        """Bytes of the ledger."""
        ledger = self.results / "ledger.jsonl"
        return ledger.stat().st_size if ledger.exists() else 0

    def wait(self, seconds: float) -> bool:
        """Wait; True when the run has ended."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def clear(self) -> list[str]:
        """Wait until all processes are gone; end those that stay, and name them."""
        deadline = time.monotonic() + LEAVE_SECONDS
        while (left := _marked(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.2)
        names = [_command(pid) for pid in left]
        for pid in left:
            _kill(pid)
        return [name for name in names if name]

    def lose_disk(self) -> None:
        """Leave nothing of an object store's working copy."""
        shutil.rmtree(self.cache, ignore_errors=True)


def _marked(mark: str) -> list[int]:
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _has_mark(pid, mark)]  # noqa: PTH208


def _has_mark(pid: int, mark: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
    except OSError:
        return ""
    if words and words[0].startswith("ray::"):
        return words[0]
    scripts = [Path(word).name for word in words if word.endswith((".py", "gcs_server", "raylet"))]
    return scripts[0] if scripts else " ".join(Path(word).name for word in words[:3])


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@dataclass
class Outcome:
    """What a number of disturbed studies came to."""

    kills: int = 0
    sessions: int = 0
    studies: int = 0
    stuck: int = 0
    victims: Counter[str] = field(default_factory=Counter)
    left_behind: list[str] = field(default_factory=list)
    trials_lost: int = 0
    trials_doubled: int = 0
    rows_compared: int = 0
    rows_different: int = 0
    examples: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    under_way: bool = False

    def is_done(self, kills: int) -> bool:
        """Whether all kills are spent and the last study has ended."""
        return self.kills >= kills and not self.under_way

    @property
    def is_sound(self) -> bool:
        bad = (self.stuck, self.trials_lost, self.trials_doubled, self.rows_different)
        return not any(bad) and not self.left_behind and not self.failures


@dataclass(frozen=True)
class Pace:
    """Seconds before the first event of a trial, seconds of a whole study, when to stop (monotonic), what was there.

    ``server`` holds the results; None: the disk does.
    """

    ready: float
    total: float
    deadline: float
    before: Inventory
    server: ObjectServer | None = None


def undisturbed(study: Path) -> tuple[Path, float, float]:
    """Run the study; return its results, seconds before the first event of a trial, and all seconds."""
    began = time.monotonic()
    session = Session(study)
    ready = None
    while not session.wait(0.2):
        if ready is None and session.progress() > 1500:
            ready = time.monotonic() - began
    total = time.monotonic() - began
    if session.process.returncode != 0:
        raise SystemExit(f"the reference run failed:\n{session.log.read_text()[-3000:]}")
    session.clear()
    return session.results, ready or total / 2, total


def disturb(
    study: Path,
    kills: int,
    rng: random.Random,
    pace: Pace,
    outcome: Outcome,
) -> Path | None:
    """Run ``study`` to its end, killing at most ``kills`` times on the way; None when time is up before."""
    ready, work = pace.ready, pace.total - pace.ready
    gap = 2 * work / max(kills, 1)
    left = kills
    while True:
        session = Session(study, pace.server)
        outcome.sessions += 1
        grown, since = session.progress(), time.monotonic()
        began = since
        # one kill in four while it starts, the others once trials run
        next_kill = time.monotonic() + rng.uniform(0, ready) if rng.random() < 0.25 else math.inf
        while not session.wait(0.05):
            now = time.monotonic()
            if session.progress() != grown:
                if next_kill == math.inf and now - began > ready / 2:
                    next_kill = now + rng.uniform(0, gap)
                grown, since = session.progress(), now
            if left and now >= next_kill:
                victims = session.processes()
                victim = victims[0] if rng.random() < 0.5 else rng.choice(victims)
                name = "driver" if victim == session.process.pid else _command(victim)
                _kill(victim)
                outcome.kills += 1
                outcome.victims[name] += 1
                left -= 1
                next_kill = now + rng.uniform(0, gap + 2)
                print(f"  killed {name} after {grown} bytes of ledger", flush=True)
            if now > pace.deadline:
                _kill(session.process.pid)
                outcome.kills += 1
                outcome.victims["driver"] += 1
                session.wait(10)
                session.clear()
                return None
            if now - since > STUCK_SECONDS:
                outcome.stuck += 1
                print(f"  stuck; the log ends:\n{session.log.read_text()[-1500:]}", flush=True)
                _kill(session.process.pid)
                since = now
        stayed = session.clear()
        if session.process.returncode == 0:
            outcome.left_behind += stayed + session.left_behind(pace.before)
            outcome.studies += 1
            session.lose_disk()
            return session.results if pace.server is None else pace.server.bring_home(study)
        session.lose_disk()
        if not left and session.process.returncode > 0 and outcome.sessions > kills + 10:
            outcome.failures.append(session.log.read_text()[-500:])
            return session.results


def rows(results: Path, table: str) -> list[dict[str, Any]]:
    """Rows of a table without what only the clock decides; probabilities as they are."""
    found = pq.read_table(results / f"{table}.parquet").to_pylist()
    return [{key: value for key, value in row.items() if key not in TIMES} for row in found]


def count_lost_and_doubled(results: Path, trials: int, outcome: Outcome) -> None:
    """Check completeness without a reference: every trial, epoch, confirmation and test once."""
    table = rows(results, "trials")
    numbers = Counter((row["model"], row["number"]) for row in table)
    expected = {(model, number) for model in ("vit", "resnet") for number in range(trials)}
    lost = [f"trial {key} was never asked" for key in sorted(expected - numbers.keys())]
    lost += [f"{row['trial_id']} is {row['state']}" for row in table if row["state"] in ("WAITING", "RUNNING")]
    outcome.trials_doubled += sum(count - 1 for count in numbers.values())
    epochs = Counter((row["trial_id"], row["epoch"]) for row in rows(results, "measurements"))
    outcome.trials_doubled += sum(count - 1 for count in epochs.values())
    for row in table:
        mine = sorted(epoch for trial_id, epoch in epochs if trial_id == row["trial_id"])
        if mine != list(range(1, row["epochs"] + 1)):
            lost.append(f"{row['trial_id']} has epochs {mine} of {row['epochs']}")
    keys = ("model", "config", "seed", "split", "metric")
    confirmed = Counter(tuple(row[key] for key in keys) for row in rows(results, "confirmations"))
    outcome.trials_doubled += sum(count - 1 for count in confirmed.values())
    runs = Counter(key[:2] for key in {key[:4] for key in confirmed})
    lost += [
        f"{model} {config} has {runs[model, config]} of 4 confirmed scores (2 seeds, 2 splits)"
        for model, config in itertools.product(("vit", "resnet"), ("tuned", "default"))
        for _ in range(4 - runs[model, config])
    ]
    openings = json.loads((results / "manifest.json").read_text())["test_openings"]
    outcome.trials_doubled += max(0, len(openings) - 1)
    lost += ["the test split was never opened"] * (not openings)
    failed = [f"{row['trial_id']} {row['state']}: {row['reason']}" for row in table if row["state"] == "FAIL"]
    outcome.trials_lost += len(lost)
    outcome.examples += [*lost, *failed][:10]
    if lost:
        events = [json.loads(line) for line in (results / "ledger.jsonl").read_text().splitlines()]
        told = [e for e in events if e["kind"] in ("retry", "note") or e.get("state") in ("FAIL", "INFEASIBLE")]
        outcome.examples += [json.dumps(event)[:300] for event in told[-20:]]


def compare(results: Path, reference: Path, outcome: Outcome) -> None:
    """Compare row by row and in order."""
    for table in TABLES:
        for mine, theirs in itertools.zip_longest(rows(results, table), rows(reference, table)):
            outcome.rows_compared += 1
            if mine != theirs:
                outcome.rows_different += 1
                if len(outcome.examples) < 5:
                    outcome.examples.append(f"{table}: {mine} against {theirs}"[:600])


def campaign(
    arm: Path, models: Path, options: argparse.Namespace, lanes: int, deadline: float, server: ObjectServer | None
) -> Outcome:
    """Run a reference, then disturbed studies until all kills are spent or time is up."""
    arm.mkdir(exist_ok=True)
    state = arm / "state.json"
    if state.exists():
        saved = json.loads(state.read_text())
        ready, total, outcome = saved["ready"], saved["total"], Outcome(**saved["outcome"])
        outcome.victims = Counter(outcome.victims)
        reference = arm / "reference" / "results" / "chaos"
    else:
        reference, ready, total = undisturbed(write_study(models, arm / "reference", options.trials, lanes))
        outcome = Outcome()
    print(f"{lanes} lane(s): reference {total:.0f} s, {ready:.0f} s of it before the first trial", flush=True)
    before = take_inventory(mark=f"{MARK}=none")
    rng = random.Random(f"{options.seed}/{lanes}/{outcome.kills}" if outcome.kills else f"{options.seed}/{lanes}")
    while not outcome.is_done(options.kills) and not outcome.failures and time.monotonic() < deadline:
        home = arm / f"disturbed-{outcome.studies}"
        study = home / "study.yaml" if home.exists() else write_study(models, home, options.trials, lanes)
        pace = Pace(ready, total, deadline, before, server)
        results = disturb(study, max(0, options.kills - outcome.kills), rng, pace, outcome)
        if results is not None and not outcome.failures:
            count_lost_and_doubled(results, options.trials, outcome)
            if lanes == 1:
                compare(results, reference, outcome)
            print(f"  study {outcome.studies} done after {outcome.kills} kills", flush=True)
        outcome.under_way = results is None
        state.write_text(json.dumps({"ready": ready, "total": total, "outcome": vars(outcome)}))
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both campaigns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=20, help="search trials for each of the two models")
    parser.add_argument("--lanes", default="1,2", help="campaigns by number of lanes")
    parser.add_argument("--home", type=Path, help="keep everything here and go on from it")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after about so long")
    parser.add_argument("--s3", metavar="COMMAND", help="moto's server: results there, and no disk to go on from")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.s3 and options.home:
        parser.error("moto keeps its objects in memory: with --s3 a campaign runs in one piece")
    deadline = time.monotonic() + options.seconds
    report: dict[str, Any] = {"seed": options.seed, "trials": 2 * options.trials, "machine": facts(), "lanes": {}}
    sound = done = True
    with ExitStack() as stack:
        home = options.home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sweeper-chaos-")))
        home.mkdir(exist_ok=True)
        server = stack.enter_context(ObjectServer(options.s3, home)) if options.s3 else None
        if not (home / "models").exists():
            make_models(home / "models")
        for lanes in map(int, options.lanes.split(",")):
            outcome = campaign(home / f"lanes-{lanes}", home / "models", options, lanes, deadline, server)
            sound, done = sound and outcome.is_sound, done and outcome.is_done(options.kills)
            report["lanes"][str(lanes)] = vars(outcome) | {"victims": dict(outcome.victims), "sound": outcome.is_sound}
    first = next(iter(report["lanes"].values()))
    report["trials_lost"] = sum(arm["trials_lost"] for arm in report["lanes"].values())
    report["trials_doubled"] = sum(arm["trials_doubled"] for arm in report["lanes"].values())
    report["identical"] = first["rows_compared"] > 0 and first["rows_different"] == 0
    publish(report, options.json)
    return 1 if not sound else 0 if done else 3


if __name__ == "__main__":
    sys.exit(main())
