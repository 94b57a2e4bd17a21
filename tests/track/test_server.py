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
    assert set(runs["bert-t0000"]["tags"]) == {"bert", "COMPLETE", "rung-2", "default", "mine"}
    assert runs["bert-t0000"]["exit"] == 0
    assert runs["bert-tuned-c00"]["summary"]["test/accuracy"] == 0.7
    assert {name: a["state"] for name, a in server.artifacts.items() if name.startswith("demo-")} == {
        "demo-data": "COMMITTED",
        "demo-bert": "COMMITTED",
        "demo-minilm": "COMMITTED",
    }
    assert not any(b"deadbeef" in body for _, _, _, body in server.requests)


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
def test_a_server_that_fails_from_the_start_leaves_offline_files(tmp_path, server, fault):
    paths = begin(tmp_path / "demo")
    server.fault = fault
    notes, said, _, wait = live(paths, studies.story(confirm=False))
    assert wait < 12.5
    assert "W&B went on offline" in notes[0]
    assert "wandb sync" in notes[-1]
    assert "deadbeef" not in " ".join(said)
    assert studies.offline(paths.root) == studies.expected(paths)
    server.fault = None
    replay(paths.root)
    assert on_server(server, paths) == studies.expected(paths)


@pytest.mark.parametrize("fault", [404, 500, "hang"])
def test_a_server_that_fails_midway_loses_and_doubles_nothing(tmp_path, server, fault):
    paths = begin(tmp_path / "demo")
    events = studies.story()

    def strike():
        server.fault = fault

    notes, _, _, wait = live(paths, events, pause=0.1, at={len(events) // 2: strike})
    assert wait < 12.5
    assert notes
    in_parts = {file.name for file in run_files(paths.wandb) if file.online and not file.synced}
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
