"""The tracking process beside a driver: what it may cost, how it ends, what is there after any death."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import studies

from sweeper.core.errors import InputError, RunFailedError
from sweeper.spec.study import TrackingSpec
from sweeper.store.ledger import Ledger, LedgerTail
from sweeper.store.lock import take_lock
from sweeper.track.base import TrackedTrial
from sweeper.track.wandb_files import run_files
from sweeper.workflows.follow import Follower, Order, outcome_path
from sweeper.workflows.tracking import Tracking, _await, _spawn, replay

pytestmark = pytest.mark.fault  # processes with time limits: not beside other tests

OFFLINE = {"wandb": {"project": "demo", "mode": "offline", "tags": ["mine"]}}

DRIVER = """
import sys, json, time
sys.path[:0] = json.loads(sys.argv[1])
import studies
from pathlib import Path
from sweeper.spec.study import TrackingSpec
from sweeper.store.ledger import Ledger
from sweeper.store.paths import ResultPaths
from sweeper.workflows import tracking
from sweeper.workflows.tracking import Tracking
tracking.FINISH_BOUNDS = (60.0, 300.0)
paths = ResultPaths(Path(sys.argv[2]))
with Ledger.open(paths) as ledger, Tracking(paths, TrackingSpec.model_validate(json.loads(sys.argv[3])), print) as t:
    done = len(list(ledger.events())) - 1
    t.start()
    print(t._process.pid, flush=True)
    for kind, payload in studies.story(num_trials=int(sys.argv[4]))[done:]:
        ledger.append(kind, **payload)
        time.sleep(float(sys.argv[5]))
    studies.finish(paths)
    t.finish()
print("done", flush=True)
"""


def drive(root, tracking=OFFLINE, num_trials=4, pause=0.01):
    """Start a driver in a process of its own; return it and its tracking process's id."""
    home = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    arguments = [json.dumps(home), str(root), json.dumps(tracking), str(num_trials), str(pause)]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE, text=True)
    return driver, int(driver.stdout.readline())


def is_gone(pid, seconds=10.0):
    """Whether a process ends within ``seconds``; a zombie has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def children(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


def track(paths, spec=OFFLINE, events=()):
    """A session of a driver in this process; returns what it would note and say."""
    said = []
    with Tracking(paths, TrackingSpec.model_validate(spec), said.append) as tracking:
        tracking.start()
        studies.write(paths, events)
        notes = tracking.finish()
    return notes, said


def test_a_study_is_there_once_with_configs_summaries_and_groups(tmp_path):
    paths = studies.prepare(tmp_path / "demo")
    events = studies.story()
    studies.write(paths, events)
    studies.finish(paths)
    notes, said = track(paths)
    assert notes == []
    assert said == [f"{len(run_files(paths.wandb))} W&B runs are offline; upload them with: wandb sync {paths.wandb}"]
    assert studies.offline(paths.root) == studies.expected(paths)
    files = {file.name: file for file in run_files(paths.wandb)}
    assert {file.group for file in files.values()} == {"demo"}
    assert {file.project for file in files.values()} == {"demo"}
    trial, confirmed, study = files["bert-t0000"], files["bert-tuned-c00"], files["demo"]
    assert (trial.job_type, confirmed.job_type, study.job_type) == ("trial", "confirm", "report")
    assert set(trial.tags) == {"COMPLETE", "bert", "best", "default", "mine", "rung-1"}
    asked = next(payload for kind, payload in events if payload.get("trial_id") == "bert-t0000")
    assert trial.config["params"] == asked["params"]
    assert trial.config["effective"] == {"learning_rate": asked["params"]["learning_rate"]}
    assert trial.config["fingerprints"] == {"data": "f" * 16, "plan": "p" * 64, "code": "c" * 64}
    assert trial.metrics == {"epoch": ("", ""), "*": ("epoch", ""), "accuracy": ("epoch", "max")}
    assert trial.config["model"] == {"name": "bert", "checkpoint": "org/bert", "weights": "w" * 16}
    best = max(payload["metrics"]["accuracy"] for kind, payload in events
               if kind == "measurement" and payload["trial_id"] == "bert-t0000")  # fmt: skip
    assert trial.summary["value"] == trial.summary["best/accuracy"] == trial.summary["accuracy"]["max"] == best
    assert trial.summary["device_seconds"] == 6.0
    assert confirmed.summary["test/accuracy"] == 0.7
    assert set(confirmed.tags) == {"COMPLETE", "bert", "mine", "tuned"}
    assert study.summary["tuned/bert"] == 0.7
    assert [row["trials_ended"] for row in study.rows if "report" not in str(row)] == list(range(1, 9))
    assert {"leaderboard", "verdicts", "trials", "report", "tuning_curves_table"} <= study.rows[-1].keys()
    assert [(kind, name, set(aliases)) for kind, name, aliases in study.artifacts if kind in ("dataset", "model")] == [
        ("dataset", "demo-data", {"latest"}),
        ("model", "demo-bert", {"best", "latest"}),
        ("model", "demo-minilm", {"best", "latest"}),
    ]
    for model in ("bert", "minilm"):
        (winner,) = (file for file in files.values() if "best" in file.tags and file.config["model"]["name"] == model)
        given = files[f"{model}-tuned-c00"]
        assert winner.artifacts == [("configuration", f"demo-{model}-config", ("best", "latest"))]
        assert given.inputs == [f"demo-{model}-config"]
        assert given.config["trial"]["found_by"] == winner.name
        assert given.config["params"] == winner.config["params"]
        assert files[f"{model}-default-c00"].inputs == []
    assert study.inputs == ["demo-bert-config", "demo-minilm-config"]
    pruned = [file for file in files.values() if "PRUNED" in file.tags]
    assert pruned
    assert all(file.summary["pruned"] is True and "value" not in file.summary for file in pruned)


def test_a_second_session_writes_nothing(tmp_path):
    paths = studies.prepare(tmp_path / "demo", study=json.dumps(OFFLINE))
    studies.write(paths, studies.story())
    studies.finish(paths)
    track(paths)
    before = sorted((path, path.stat().st_mtime_ns) for path in paths.wandb.rglob("run-*.wandb"))
    track(paths)
    replay(paths.root, mode="offline")
    assert sorted((path, path.stat().st_mtime_ns) for path in paths.wandb.rglob("run-*.wandb")) == before


def test_a_replay_logs_exactly_what_live_tracking_logged(tmp_path):
    paths = studies.prepare(tmp_path / "demo", study=json.dumps(OFFLINE))
    driver, _ = drive(paths.root, pause=0.02)
    assert driver.stdout.read().endswith("done\n")

    def content():
        own = {"_timestamp", "_runtime", "_wandb"}  # the client's clock
        return {
            file.name: (
                file.run_id, file.group, file.job_type, sorted(file.tags), file.metrics, sorted(file.artifacts),
                {k: v for k, v in file.config.items() if k not in own},
                {k: v for k, v in file.summary.items() if k not in own and "_type" not in str(v)},
                [(row["_step"], row.get("epoch"), row.get("accuracy")) for row in file.rows],
            )
            for file in run_files(paths.wandb)
        }  # fmt: skip

    live = content()
    shutil.rmtree(paths.wandb)
    replay(paths.root)
    assert content() == live


@pytest.mark.parametrize("victim", ["driver", "tracker", "both"])
def test_after_a_kill_at_any_moment_every_epoch_is_there_once(tmp_path, victim):
    rng = random.Random(victim)
    paths = studies.prepare(tmp_path / "demo")
    for _ in range(3):
        driver, tracker = drive(paths.root, num_trials=6, pause=0.02)
        time.sleep(rng.uniform(0.1, 2.0))
        if victim in ("driver", "both"):
            driver.kill()
        if victim in ("tracker", "both"):
            with suppress(ProcessLookupError):  # the study was over before its turn
                os.kill(tracker, signal.SIGKILL)
        driver.wait(60)
        assert is_gone(tracker)
    driver, _ = drive(paths.root, num_trials=6, pause=0)
    assert driver.stdout.read().endswith("done\n")
    assert len(studies.expected(paths)) == 16
    assert studies.offline(paths.root) == studies.expected(paths)


def test_the_tracking_process_and_its_client_end_with_the_driver(tmp_path):
    paths = studies.prepare(tmp_path / "demo")
    driver, tracker = drive(paths.root, num_trials=4, pause=0.1)  # the client is needed from the winners' lineage on
    until = time.monotonic() + 20
    while not (clients := children(tracker)) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(clients) == 1, "one service process"
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert is_gone(tracker, 3)
    assert is_gone(clients[0], 3)


def test_ctrl_c_reaches_the_driver_alone(tmp_path):
    paths = studies.prepare(tmp_path / "demo")
    driver, tracker = drive(paths.root, num_trials=4, pause=0.1)
    assert os.getsid(tracker) == tracker
    driver.kill()
    driver.wait()
    assert is_gone(tracker)


def test_a_stuck_tracking_process_is_killed_in_time(tmp_path):
    paths = studies.prepare(tmp_path / "demo")
    studies.write(paths, studies.story())
    process = _spawn(paths, Order(root=str(paths.root), tracking=OFFLINE))
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGSTOP)
    began = time.monotonic()
    outcome = _await(process, paths, 1.0)
    assert time.monotonic() - began < 5
    assert outcome.failures
    assert is_gone(process.pid)


def test_a_folder_that_cannot_be_made_costs_nothing_but_a_note(tmp_path):
    paths = studies.prepare(tmp_path / "demo")
    studies.write(paths, studies.story())
    paths.wandb.write_text("in the way: no folder can be made here")
    notes, _ = track(paths)
    assert "tracking: WandbTracker" in notes[0]
    assert notes[-1].endswith(f"later: sweeper track {paths.root}")


def test_a_full_disk_costs_nothing_but_a_note(tmp_path):
    """W&B's folder alone is a file system of 256 KiB; the ledger's has room."""
    paths = studies.prepare(tmp_path / "demo")
    paths.wandb.mkdir()
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    inner = f'mount -t tmpfs -o size=256k none {paths.wandb} && exec "$@"'
    if subprocess.run([*mount, f"mount -t tmpfs -o size=256k none {paths.wandb}"], capture_output=True).returncode:
        pytest.skip("no file system of one's own can be mounted here")
    home = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    arguments = [sys.executable, "-c", DRIVER, json.dumps(home), str(paths.root), json.dumps(OFFLINE), "30", "0"]
    began = time.monotonic()
    done = subprocess.run([*mount, inner, "sh", *arguments], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("done\n"), done.stderr
    assert "tracking: WandbTracker" in done.stdout
    assert f"later: sweeper track {paths.root}" in done.stdout
    assert time.monotonic() - began < 60
    assert len(studies.expected(paths)) == 64


def test_a_damaged_ledger_ends_tracking_with_a_note(tmp_path):
    paths = studies.prepare(tmp_path / "demo")
    studies.write(paths, studies.story())
    content = paths.ledger.read_bytes()
    paths.ledger.write_bytes(content.replace(b"bert-t0000", b"bert-t9000", 1))
    said = []
    with Tracking(paths, TrackingSpec.model_validate(OFFLINE), said.append) as tracking:
        tracking.start()
        assert "its checksum does not fit" in tracking.finish()[0]


def test_nothing_is_started_when_nothing_is_asked_for(tmp_path, monkeypatch):
    paths = studies.prepare(tmp_path / "demo")
    for spec in ({}, {"wandb": {"mode": "disabled"}}):
        with Tracking(paths, TrackingSpec.model_validate(spec), print) as tracking:
            tracking.start()
            assert tracking._process is None
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with Tracking(paths, TrackingSpec.model_validate({"wandb": {}}), print) as tracking:
        tracking.start()
        assert tracking._process is None


def test_a_crashed_study_is_replayed_as_far_as_it_went(tmp_path):
    paths = studies.prepare(tmp_path / "demo", study=json.dumps(OFFLINE))
    events = studies.story()
    studies.write(paths, events[:25])
    replay(paths.root)
    assert studies.offline(paths.root) == studies.expected(paths)
    running = [file for file in run_files(paths.wandb) if "RUNNING" in file.tags]
    assert running
    assert all(file.exit_code == 1 for file in running)
    studies.write(paths, events[25:])
    replay(paths.root)
    assert studies.offline(paths.root) == studies.expected(paths)


def test_a_running_study_is_not_replayed(tmp_path):
    paths = studies.prepare(tmp_path / "demo")
    studies.write(paths, studies.story())
    take_lock(paths.lock)
    with pytest.raises(InputError, match="only one process may write"):
        replay(paths.root, mode="offline")


def test_a_replay_that_failed_says_so(tmp_path):
    paths = studies.prepare(tmp_path / "demo")
    studies.write(paths, studies.story())
    paths.wandb.write_text("in the way")
    with pytest.raises(RunFailedError, match="WandbTracker"):
        replay(paths.root, mode="offline")


def test_the_tail_reads_each_line_once_and_never_half_of_one(tmp_path):
    paths = studies.prepare(tmp_path / "demo")
    studies.write(paths, studies.story())
    content = paths.ledger.read_bytes()
    whole = Ledger.read(paths)
    tail, seen = LedgerTail(paths), []
    for end in range(0, len(content) + 97, 97):
        paths.ledger.write_bytes(content[:end])
        seen += tail.poll()
    assert seen == whole
    paths.ledger.write_bytes(content[:-200])
    with pytest.raises(InputError, match="cut back"):
        tail.poll()


def test_a_tracker_that_raises_is_dropped_and_the_others_go_on(tmp_path):
    paths = studies.prepare(tmp_path / "demo")
    studies.write(paths, studies.story())

    class Recorder:
        def __init__(self, fail):
            self.fail, self.seen = fail, {}

        def open_study(self, study):
            pass

        def update_trial(self, trial: TrackedTrial):
            if self.fail:
                raise ConnectionError("no network")
            self.seen[trial.record.spec.trial_id] = [m.epoch for m in trial.record.measurements]

        def update_study(self, report):
            pass

        def close(self):
            return ""

    good, bad = Recorder(False), Recorder(True)
    follower = Follower(paths.root, [bad, good])
    while follower.pump():
        pass
    follower.finish()
    assert good.seen == studies.expected(paths)
    assert follower.failures == ["Recorder: no network"]


def test_ids_differ_between_two_runs_of_one_plan_and_survive_resume(tmp_path):
    ids = []
    for folder in ("a", "b"):
        paths = studies.prepare(tmp_path / folder)
        events = studies.story()
        studies.write(paths, events[:30])
        track(paths)
        first = {file.name: file.run_id for file in run_files(paths.wandb)}
        studies.write(paths, [("study_opened", {"plan_hash": "changed", "reason": "run"}), *events[30:]])
        track(paths)
        second = {file.name: file.run_id for file in run_files(paths.wandb)}
        assert first.items() <= second.items()
        ids.append(set(second.values()))
    assert not ids[0] & ids[1]


def test_no_key_is_in_any_file(tmp_path, monkeypatch):
    key = "deadbeef" * 5
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    paths = studies.prepare(tmp_path / "demo")
    studies.write(paths, studies.story())
    studies.finish(paths)
    notes, said = track(paths, {"wandb": {"project": "demo", "mode": "online"}, "tensorboard": True})
    assert notes, "nothing listens on port 9"
    track(paths)
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(texts) > 30
    assert not any(key.encode() in text for text in texts)
    assert key not in " ".join([*notes, *said])
    assert outcome_path(paths).is_file()
