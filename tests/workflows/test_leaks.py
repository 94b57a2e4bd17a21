"""The helper that looks for leaks finds each kind of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sweeper.testing.leaks import no_growth, no_leaks, take_inventory


def test_every_kind_of_leak_is_found_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    results = tmp_path / "results"
    (results / ".scratch" / "snapshots").mkdir(parents=True)
    mark = f"SWEEPER_LEAK={os.getpid()}"
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], env=os.environ | dict([mark.split("=")])
    )
    shared = Path(f"/dev/shm/sweeper-test-{os.getpid()}")
    before = take_inventory(mark="SWEEPER_LEAK=none")
    try:
        dead = f"sweeper-{Path('/proc/self/ns/pid').stat().st_ino}-{2**22 + 1}-1-x"
        (tmp_path / "temporary" / dead).mkdir()
        (results / "lock.json").touch()
        (results / ".trials.parquet.1.partial").touch()
        shared.touch()
        left = take_inventory([results], mark).since(before)
    finally:
        shared.unlink(missing_ok=True)
        sleeper.kill()
        sleeper.wait()
    assert len(left) == 6
    text = "\n".join(left)
    expected = (
        "snapshots",
        "lock.json",
        ".trials.parquet.1.partial",
        f"process {sleeper.pid}",
        shared.name,
        dead,
    )
    for part in expected:
        assert part in text


def test_leaks_are_an_assertion(tmp_path):
    with pytest.raises(AssertionError, match=r"left behind: .*lock\.json"), no_leaks([tmp_path], patience_seconds=0.3):
        (tmp_path / "lock.json").touch()
    (tmp_path / "lock.json").unlink()
    with no_leaks([tmp_path], patience_seconds=0.3):
        pass


def test_what_lives_on_may_be_replaced_but_not_grow():
    mark = f"SWEEPER_GROWTH={os.getpid()}"
    started = []

    def start():
        program = "import time; time.sleep(60)  # ray::RayTrainWorker"
        started.append(subprocess.Popen([sys.executable, "-c", program], env=os.environ | dict([mark.split("=")])))

    try:
        start()
        with no_growth(lambda: True, mark=mark, patience_seconds=5):
            start()
            started[0].kill()
            started[0].wait()
        with (
            pytest.raises(AssertionError, match=r"more than before: .*RayTrainWorker.: 1"),
            no_growth(lambda: True, mark=mark, patience_seconds=0.3),
        ):
            start()
        with pytest.raises(AssertionError, match="not settled"), no_growth(lambda: False, patience_seconds=0.1):
            pass
    finally:
        for process in started:
            process.kill()
            process.wait()
