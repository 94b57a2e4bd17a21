"""Snapshots of trials that have ended, which nobody will go on from, are removed while the study runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from sweeper.store.paths import ResultPaths

logger = logging.getLogger("sweeper")


class Tidy:
    """Listens to the book and removes, in a thread: an object store takes a moment, and nobody has to wait for it.

    A context manager. What it does not get to, and what fails, goes with the study's end.
    """

    def __init__(self, paths: ResultPaths) -> None:
        self._paths = paths
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tidy")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Remove the snapshots of a trial whose end is in the ledger."""
        if event["kind"] == "trial_ended":
            self._thread.submit(self._remove, event["trial_id"])

    def _remove(self, trial_id: str) -> None:
        try:
            self._paths.storage.remove(self._paths.snapshots(trial_id))
        except OSError as error:
            logger.debug("snapshots of %s stay for now: %s", trial_id, error)
