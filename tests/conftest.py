"""Shared fixtures. The environment is closed before anything heavy is imported."""

from __future__ import annotations

import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_BASE_URL": "http://127.0.0.1:9",
    "WANDB_MODE": "offline",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}

import pytest


@pytest.fixture(scope="session")
def ray_session():
    """One local Ray with two CPUs for the whole test session; nothing of ours may be left in it."""
    from sweeper.engine.session import local_ray

    with local_ray(num_cpus=2):
        yield


@pytest.fixture
def ray_clean(ray_session):
    """A Ray that holds no placement group and no live actor of ours after the test."""
    from tests_support import leftovers

    yield
    assert leftovers() == []
