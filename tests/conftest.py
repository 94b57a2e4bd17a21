"""Shared fixtures. The environment is closed before anything heavy is imported."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

NETGUARD = Path(__file__).parent / "netguard"
os.environ |= {
    "SWEEPER_NETGUARD_LOG": str(Path(tempfile.mkdtemp(prefix="sweeper-netguard-")) / "connections.log"),
    "PYTHONPATH": os.pathsep.join([str(NETGUARD), str(NETGUARD.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_BASE_URL": "http://127.0.0.1:9",
    "WANDB_MODE": "offline",
    "RAY_AUTH_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}

sys.path.insert(0, str(NETGUARD))
import sitecustomize  # noqa: F401 - installs the guard in this process too

from sweeper.engine.environment import prepare

prepare(own_ray=True)

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("sweeper", deadline=None)  # the machine may be busy with other work
hypothesis.settings.load_profile("sweeper")


@pytest.fixture(scope="session", autouse=True)
def no_outgoing_connection():
    """Fail the session when any process of it, Ray's workers included, tried to leave the machine."""
    yield
    log = Path(os.environ["SWEEPER_NETGUARD_LOG"])
    assert not log.exists(), log.read_text()


@pytest.fixture(scope="session")
def ray_session():
    """One local Ray with two CPUs for the whole test session."""
    from sweeper.engine.cluster import connection

    with connection(num_cpus=2):
        yield


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Tiny untrained checkpoints on disk: a vision and a text folder by family."""
    import tiny

    return tiny.save_checkpoints(tmp_path_factory.mktemp("checkpoints"))
