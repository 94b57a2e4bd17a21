"""The driver's side of tracking: a child process to start, and one bounded wait at the end."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sweeper
from sweeper.core.errors import InputError, Problem, RunFailedError
from sweeper.spec.load import load_study
from sweeper.spec.study import TrackingSpec, WandbSpec
from sweeper.store.logs import log_of
from sweeper.store.manifest import read_manifest
from sweeper.store.paths import ResultPaths
from sweeper.store.storage import is_url
from sweeper.track.wandb import effective_mode
from sweeper.workflows.follow import Order, Outcome, command, outcome_path
from sweeper.workflows.results import readable

logger = logging.getLogger("sweeper")

FINISH_SHARE = 0.05
"""Share of a session's time that the end may be held up by tracking, within these bounds:"""
FINISH_BOUNDS = (10.0, 300.0)
INTERRUPTED_SECONDS = 5.0
"""The wait after Ctrl-C or an error."""
_PRIVATE = ("RAY_AUTH_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_SERVICE")
"""What the child has no need to know."""


class Tracking:
    """The tracking process of a run; does nothing when the study asks for no tracker. A context manager.

    Parameters
    ----------
    spec:
        ``tracking`` of the study file.
    say:
        Prints a line for the user.
    """

    def __init__(self, paths: ResultPaths, spec: TrackingSpec, say: Callable[[str], object]) -> None:
        self._paths = paths
        self._spec = spec
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._began = time.monotonic()

    def start(self) -> None:
        """Start the process; the manifest must stand. What goes wrong is said, not raised."""
        if not _asks_for_any(self._spec):
            return
        order = Order(root=str(self._paths.root.resolve()), tracking=self._spec.model_dump(mode="json"))
        try:
            self._process = _spawn(self._paths, order)
        except OSError as error:
            self._say(f"tracking could not start: {error}; later: sweeper track {self._paths.place}")

    def finish(self) -> list[str]:
        """Let the process go to the end of the ledger, and return what must be noted: empty when all went well.

        Waits for 5% of the run's time at most (no less than 10 s, no more than 300 s).
        """
        elapsed = time.monotonic() - self._began
        return self._finish(min(max(FINISH_SHARE * elapsed, FINISH_BOUNDS[0]), FINISH_BOUNDS[1]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish(INTERRUPTED_SECONDS)

    def _finish(self, seconds: float) -> list[str]:
        if self._process is None:
            return []
        process, self._process = self._process, None
        outcome = _await(process, self._paths, seconds)
        later = f"; later: sweeper track {self._paths.place}"
        notes = [f"tracking: {failure}" for failure in outcome.failures]
        for text in [*notes, *outcome.lines]:
            self._say(text)
        if notes and not outcome.lines:
            self._say(f"tracking is incomplete{later}")
            return [*notes, f"tracking is incomplete{later}"]
        return [*notes, *outcome.lines] if notes else []


def replay(root: str | Path, *, mode: str | None = None, seconds: float | None = None) -> list[str]:
    """Bring a finished or crashed study into its trackers from the ledger; return lines for the user.

    What is there already is not written again. A study without ``tracking`` goes to W&B.

    Parameters
    ----------
    mode:
        W&B's mode in the place of the study's: ``online``, ``offline`` or ``shared``.
    seconds:
        Give up after this long; None: wait for every upload.

    Raises
    ------
    InputError
        When ``root`` is no result folder, its study is running, or W&B is disabled.
    RunFailedError
        When a tracker failed; W&B's offline files are kept.
    """
    paths = readable(root if is_url(str(root)) else Path(root).resolve())
    read_manifest(paths)
    spec = load_study(paths.study).tracking
    if not _asks_for_any(spec, ignore_mode=True):
        spec = spec.model_copy(update={"wandb": WandbSpec()})
    if mode is not None:
        wandb = spec.wandb or WandbSpec()
        spec = spec.model_copy(update={"wandb": wandb.model_copy(update={"mode": mode})})
    if not _asks_for_any(spec):
        place = f"{paths.study} tracking.wandb.mode"
        raise InputError(Problem(place, "there must be somewhere to track to", "disabled", "pass --mode offline"))
    log = log_of(paths)
    log.lock()
    try:
        order = Order(root=str(paths.root), tracking=spec.model_dump(mode="json"))
        outcome = _await(_spawn(paths, order), paths, seconds)
        publish_tracked(paths)
    finally:
        log.close()
    if outcome.failures:
        raise RunFailedError("\n".join([*outcome.failures, *outcome.lines]))
    return outcome.lines


def publish_tracked(paths: ResultPaths) -> None:
    """Bring what trackers wrote as files into an object store, where the results lie in one."""
    for folder in (paths.wandb, paths.tensorboard):
        if folder.is_dir():
            paths.storage.publish(folder)


def _asks_for_any(spec: TrackingSpec, *, ignore_mode: bool = False) -> bool:
    wandb = spec.wandb is not None and (ignore_mode or effective_mode(spec.wandb.mode, os.environ) != "disabled")
    return wandb or spec.mlflow is not None or spec.tensorboard or bool(spec.plugins)


def _spawn(paths: ResultPaths, order: Order) -> subprocess.Popen[bytes]:
    """Start the process in a session of its own: a terminal's Ctrl-C is the driver's alone."""
    paths.scratch.mkdir(parents=True, exist_ok=True)
    outcome_path(paths).unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in _PRIVATE}
    home = str(Path(sweeper.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join([home, *filter(None, [environment.get("PYTHONPATH")])])
    with paths.tracking_log.open("wb") as log:
        return subprocess.Popen(
            command(order),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def _await(process: subprocess.Popen[bytes], paths: ResultPaths, seconds: float | None) -> Outcome:
    """Ask the process to finish and wait for it; kill it when it takes longer."""
    assert process.stdin is not None, "it was started with a pipe"
    try:
        process.stdin.write(f"finish {'' if seconds is None else seconds}\n".encode())
        process.stdin.flush()
        process.wait(None if seconds is None else seconds + 2)
    except (OSError, subprocess.TimeoutExpired):
        pass
    finally:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)  # the process itself, and clients that outlived it
        process.wait()
        with suppress(OSError):
            process.stdin.close()
    try:
        fields: dict[str, Any] = json.loads(outcome_path(paths).read_text())
        return Outcome(**fields)
    except (OSError, ValueError, TypeError):
        return Outcome(failures=[f"the tracking process ended without its result; see {paths.tracking_log}"])
