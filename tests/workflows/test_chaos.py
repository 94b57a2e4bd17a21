"""The benchmarks of promise 3 in a short form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(script, *arguments):
    """Run a benchmark; return what it wrote."""
    out = Path(arguments[-1])
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments[:-1], "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=560)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


def test_no_reader_crashes_on_damaged_files(tmp_path):
    report = run("fuzz.py", "--inputs", "20", "--seed", "test", str(tmp_path / "out.json"))
    assert report["crashes"] == {}, report["examples"]


@pytest.mark.fault
def test_a_study_killed_or_without_storage_at_any_write_ends_as_if_nothing_had_happened(tmp_path):
    report = run("every_write.py", "--trials", "1", "--every", "5", str(tmp_path / "out.json"))
    assert report["share_identical"] == 1
    assert report["kills"] > 40


@pytest.mark.ray
@pytest.mark.fault
@pytest.mark.timeout(600)
def test_a_real_study_killed_three_times_loses_and_doubles_nothing(tmp_path):
    report = run("chaos.py", "--kills", "3", "--seed", "1", "--trials", "3", "--lanes", "1", str(tmp_path / "out.json"))
    assert report["lanes"]["1"]["kills"] == 3
    assert (report["trials_lost"], report["trials_doubled"], report["identical"]) == (0, 0, True)
