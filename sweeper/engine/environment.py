"""Ray's environment. Ray reads part of it when it is first imported, so this module imports nothing of it."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3600",  # 60 s would be retried for ever; capacity is checked first
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "60",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never restored
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_prestart_worker_first_driver": "0",  # a process for each core, of which nearly none would be used
    "RAY_worker_niceness": "0",  # Ray's 15 would leave lanes next to nothing of a machine that does anything else
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""No output, no telemetry, no automatic loggers. What the user has set wins."""


def prepare(*, own_ray: bool) -> None:
    """Set Ray's environment; call before anything imports ray.

    Parameters
    ----------
    own_ray:
        Whether a Ray of our own will be started: it gets a token that lives only in this process and its
        children, where Ray would otherwise write one into the user's home folder. For a running cluster the
        user's own ``RAY_AUTH_MODE`` and token hold.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if own_ray and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Start Ray inside this block so that all its processes listen on loopback alone.

    Asked for 127.0.0.1, Ray takes the machine's outward address instead and listens on every one, except where its
    clusters are switched off, as they are on Windows and macOS.
    """
    from ray._private import ray_constants

    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    before, setting = os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False  # for Ray's processes, and for this one
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = setting
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


_NO_WAY_OUT = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost,::1"}
"""Port 9 (discard) of loopback: nothing listens there."""


@contextmanager
def no_way_out() -> Iterator[None]:
    """Start Ray inside this block so that it asks no cloud metadata service where it runs.

    Ray's dashboard process does that at every start, by plain HTTP to a link-local address, usage statistics on or
    off. A user's own proxy settings win.
    """
    added = {name: value for name, value in _NO_WAY_OUT.items() if name not in os.environ}
    os.environ |= added
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def reopen_way_out() -> None:
    """Undo `no_way_out` in a process that Ray started: training may use the network like any program."""
    for name, value in _NO_WAY_OUT.items():
        if os.environ.get(name) == value:
            del os.environ[name]
