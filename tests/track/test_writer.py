"""Run files that are written without W&B's client hold what the client would have written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import studies
from wandb_stub import Stub

from sweeper.store.ledger import Ledger
from sweeper.track.wandb_files import run_files
from sweeper.workflows.tracking import replay

CLOCK = ("_timestamp", "_runtime", "_wandb")


def plain(run):
    """A run without what the clock decides, and without the wording of its client."""
    run = dict(run, history=[json.loads(line) for _, line in sorted(run["history"].items())])
    run["config"] = {key: value for key, value in run["config"].items() if key not in CLOCK}
    for values in (run["summary"], *run["history"]):
        for key in CLOCK:
            values.pop(key, None)
    run.pop("files")
    return run


@pytest.mark.fault  # processes with time limits: not beside other tests
def test_a_file_that_is_synced_later_says_what_live_tracking_would_have_said(tmp_path, monkeypatch):
    ledger, found = studies.prepare(tmp_path / "written"), {}
    studies.write(ledger, studies.story(num_trials=3))
    monkeypatch.setenv("WANDB_API_KEY", "deadbeef" * 5)
    for mode in ("online", "offline"):
        with Stub() as stub:
            monkeypatch.setenv("WANDB_BASE_URL", stub.url)
            tracking = {"wandb": {"project": "demo", "mode": mode, "tags": ["mine"], "notes": "a note"}}
            paths = studies.prepare(tmp_path / mode, study=json.dumps(tracking))
            shutil.copy(ledger.ledger, paths.ledger)
            replay(paths.root)
            if mode == "offline":
                command = [sys.executable, "-m", "wandb", "sync", str(paths.wandb)]
                subprocess.run(command, check=True, capture_output=True, timeout=60)
            found[mode] = {run["display"]: plain(run) for run in stub.runs.values() if run["job"] != "report"}
    assert len(found["offline"]) == 10
    assert found["offline"] == found["online"]


def test_times_are_those_of_the_trial(tmp_path):
    """A run that is written later, or replayed from a folder, shows when its trial ran."""
    paths = studies.prepare(tmp_path, study='{"wandb": {"mode": "offline"}}')
    studies.write(paths, studies.story(num_trials=1, confirm=False))
    replay(paths.root)
    (run,) = (run for run in run_files(paths.wandb) if run.name == "bert-t0000")
    assert [row["_runtime"] for row in run.rows] == [row["elapsed_seconds"] for row in run.rows] == [1.5, 3.0, 4.5, 6.0]
    began = {round(row["_timestamp"] - row["elapsed_seconds"], 3) for row in run.rows}
    assert began == {round(next(e.t for e in Ledger.read(paths) if e.kind == "segment_started"), 3)}
