"""The real client against a stub of W&B's server on loopback, with the faults that servers have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import studies
from wandb_stub import Stub

from sweeper.spec.study import TrackingSpec
from sweeper.track.wandb_files import run_files
from sweeper.workflows.tracking import Tracking, replay

pytestmark = pytest.mark.fault  # processes with time limits: not beside other tests

ONLINE = {"wandb": {"project": "demo", "mode": "online", "tags": ["mine"]}}


@pytest.fixture
def server(monkeypatch):
    with Stub() as stub:
        monkeypatch.setenv("WANDB_BASE_URL", stub.url)
        monkeypatch.setenv("WANDB_API_KEY", "deadbeef" * 5)
        yield stub


def live(paths, events, pause=0.0, at=None):
    """A session: events come one by one; ``at`` maps a position to what happens there."""
    said = []
    with Tracking(paths, TrackingSpec.model_validate(ONLINE), said.append) as tracking:
        tracking.start()
        began = time.monotonic()
        for index, event in enumerate(events):
            if at and index in at:
                at[index]()
            studies.write(paths, [event])
            time.sleep(pause)
        seconds = time.monotonic() - began
        studies.finish(paths)
        began = time.monotonic()
        notes = tracking.finish()
    return notes, said, seconds, time.monotonic() - began


def on_server(server, paths):
    """The epochs of every trial's run on the server, by name."""
    return {run["display"]: server.epochs(run_id) for run_id, run in server.runs.items() if run["job"] != "report"}


def begin(root):
    paths = studies.prepare(root, study=json.dumps(ONLINE))
    studies.write(paths, [])
    return paths


def test_a_study_is_followed_online(tmp_path, server):
    paths = begin(tmp_path / "demo")
    notes, said, _, _ = live(paths, studies.story(), pause=0.02)
    assert (notes, said) == ([], [])
    assert on_server(server, paths) == studies.expected(paths)
    runs = {run["display"]: run for run in server.runs.values()}
    assert {run["group"] for run in runs.values()} == {"demo"}
    assert {run["job"] for run in runs.values()} == {"trial", "confirm", "report"}
    assert set(runs["bert-t0000"]["tags"]) == {"bert", "COMPLETE", "rung-1", "default", "best", "mine"}
    assert runs["bert-t0000"]["exit"] == 0
    assert runs["bert-tuned-c00"]["summary"]["test/accuracy"] == 0.7
    found = {name: a for name, a in server.artifacts.items() if name.startswith("demo-")}
    assert {a["state"] for a in found.values()} == {"COMMITTED"}
    assert sorted(found) == ["demo-bert", "demo-bert-config", "demo-data", "demo-minilm", "demo-minilm-config"]
    assert "best" in found["demo-bert"]["aliases"]
    assert sorted(found["demo-bert"]["files"]) == ["checkpoint/model.safetensors", "config.yaml"]
    data = found["demo-data"]
    assert json.loads(data["metadata"])["fingerprint"] == "f" * 16
    assert data["files"]["train"]["ref"] == (paths.root / "train.csv").as_uri()
    best = found["demo-bert-config"]  # trial, best configuration, confirmation
    assert "best" in server.runs[best["logged_by"]]["tags"]
    names = [server.runs[run_id]["display"] for run_id in best["used_by"]]
    assert sorted(names) == ["bert-tuned-c00", "demo"]
    (view,) = server.views.values()
    assert view["display"] == "demo"
    panels = json.dumps(view["spec"])
    assert all(word in panels for word in ("Parallel Coordinates Plot", "Parameter Importance", "learning_rate"))
    assert not any(b"deadbeef" in body for _, _, _, body in server.requests)


def test_what_the_study_file_leaves_out_comes_from_the_environment(tmp_path, server, monkeypatch):
    named = {"PROJECT": "mine", "ENTITY": "team", "TAGS": "a,b", "NOTES": "why", "MODE": "online"}
    others = {"RUN_ID": "fixed", "NAME": "fixed", "RUN_GROUP": "fixed", "RESUME": "never", "SWEEP_ID": "fixed"}
    for name, value in (named | others).items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    paths = studies.prepare(tmp_path / "demo", study='{"wandb": {}}')
    studies.write(paths, studies.story(num_trials=1, confirm=False))
    replay(paths.root)
    assert on_server(server, paths) == studies.expected(paths)
    assert {(run["project"], run["entity"], run["notes"], run["group"]) for run in server.runs.values()} == {
        ("mine", "team", "why", "demo")
    }
    assert all({"a", "b"} <= set(run["tags"]) for run in server.runs.values())
    again = studies.prepare(
        tmp_path / "again", "again", '{"wandb": {"project": "other", "entity": "me", "tags": ["c"]}}'
    )
    studies.write(again, studies.story(num_trials=1, confirm=False))
    replay(again.root)
    later = [run for run in server.runs.values() if run["group"] == "again"]
    assert {(run["project"], run["entity"]) for run in later} == {("other", "me")}
    assert all("c" in run["tags"] and "a" not in run["tags"] for run in later)


def test_shared_mode_logs_every_epoch_to_runs_that_others_may_join(tmp_path, server):
    shared = {"wandb": {"project": "demo", "mode": "shared"}}
    paths = studies.prepare(tmp_path / "demo", study=json.dumps(shared))
    studies.write(paths, studies.story(num_trials=2))
    studies.finish(paths)
    assert replay(paths.root) == []
    assert on_server(server, paths) == studies.expected(paths)
    assert replay(paths.root) == []
    assert on_server(server, paths) == studies.expected(paths)


def test_a_replay_of_what_is_online_sends_nothing(tmp_path, server):
    paths = begin(tmp_path / "demo")
    live(paths, studies.story())
    before, lines = len(server.requests), json.dumps(server.runs, default=str)
    assert replay(paths.root) == []
    assert len(server.requests) == before
    assert json.dumps(server.runs, default=str) == lines


def test_a_replay_without_local_files_asks_the_server_and_doubles_nothing(tmp_path, server):
    import shutil

    paths = begin(tmp_path / "demo")
    live(paths, studies.story())
    shutil.rmtree(paths.wandb)
    replay(paths.root)
    assert on_server(server, paths) == studies.expected(paths)


def test_offline_runs_are_uploaded_by_either_command_but_never_by_both(tmp_path, server):
    paths = begin(tmp_path / "demo")
    events = studies.story(confirm=False)
    studies.write(paths, events)
    studies.finish(paths)
    (line,) = replay(paths.root, mode="offline")
    assert server.requests == []
    words = line.split(": ")[1].split()
    subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True, env=os.environ, timeout=120)
    assert on_server(server, paths) == studies.expected(paths)
    replay(paths.root, mode="online")
    assert on_server(server, paths) == studies.expected(paths)
    paths = begin(tmp_path / "other")
    studies.write(paths, events)
    (line,) = replay(paths.root, mode="offline")
    replay(paths.root, mode="online")
    words = line.split(": ")[1].split()
    subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True, env=os.environ, timeout=120)
    assert sorted(on_server(server, paths).items()) == sorted(studies.expected(paths).items())


@pytest.mark.parametrize("fault", [401, 429, "hang"])
def test_a_server_that_fails_from_the_start_leaves_offline_files(tmp_path, server, bounded, fault):
    paths = begin(tmp_path / "demo")
    server.fault = fault
    notes, said, _, wait = live(paths, studies.story(confirm=False))
    assert wait < 3 * 12.5
    assert "W&B went on offline" in notes[0]
    assert "deadbeef" not in " ".join(said)
    assert "wandb sync" in replay(paths.root, mode="offline")[0]  # writes nothing, unless time was up before
    assert studies.offline(paths.root) == studies.expected(paths)
    server.fault = None
    replay(paths.root)
    assert on_server(server, paths) == studies.expected(paths)


@pytest.mark.parametrize("fault", [404, 500, "hang"])
def test_a_server_that_fails_midway_loses_and_doubles_nothing(tmp_path, server, bounded, fault):
    paths = begin(tmp_path / "demo")
    events = studies.story()

    def strike():
        server.fault = fault

    notes, _, _, wait = live(paths, events, pause=0.1, at={len(events) // 2: strike})
    assert wait < 3 * 12.5
    assert notes
    in_parts = {file.name for file in run_files(paths.wandb) if file.online and not file.synced}
    in_parts.add("")  # time was up while a file was being written
    offline = {name: epochs for name, epochs in studies.offline(paths.root).items() if name not in in_parts}
    assert all(epochs == studies.expected(paths)[name] for name, epochs in offline.items())
    server.fault = None
    assert replay(paths.root) == []
    assert on_server(server, paths) == studies.expected(paths)


@pytest.mark.parametrize("fault", [429, "drop"])
def test_a_server_that_fails_now_and_then_is_asked_again(tmp_path, server, fault):
    paths = begin(tmp_path / "demo")
    server.fault, server.fault_share = fault, 0.2
    live(paths, studies.story(num_trials=2, confirm=False), pause=0.05)
    server.fault = None
    replay(paths.root)
    assert on_server(server, paths) == studies.expected(paths)


def test_a_study_killed_online_goes_on_without_a_gap(tmp_path, server):
    import signal

    from test_process import drive, is_gone

    paths = studies.prepare(tmp_path / "demo")
    for moment in (1.0, 2.0, 3.0):
        driver, tracker = drive(paths.root, ONLINE, num_trials=4, pause=0.06)
        time.sleep(moment)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        assert is_gone(tracker)
    driver, _ = drive(paths.root, ONLINE, num_trials=4, pause=0.01)
    assert driver.stdout.read().endswith("done\n")
    replay(paths.root, mode="online")
    assert on_server(server, paths) == studies.expected(paths)
    assert len(studies.expected(paths)) == 12
