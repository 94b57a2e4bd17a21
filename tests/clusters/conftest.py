from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

PROGRAMS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "srun", "ray", "kubectl")


@pytest.fixture(autouse=True)
def state_folder(tmp_path, monkeypatch):
    """Launches of tests are remembered in a folder of their own."""
    monkeypatch.setenv("SWEEPER_STATE", str(tmp_path / "state"))


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Stand-ins for the programs of SLURM and Kubernetes, first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = Path(__file__).parent / "fakes" / "program.py"
    for name in PROGRAMS:
        (folder / name).write_text(f"#!{sys.executable}\n{script.read_text()}")
        (folder / name).chmod(0o755)
    (tmp_path / "fake").mkdir()
    monkeypatch.setenv("FAKE_CLUSTER", str(tmp_path / "fake"))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder
