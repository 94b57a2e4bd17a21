"""Uploading whole run files while the sweep goes on, by what ``wandb sync`` does in W&B's own service process.

It costs a fraction of the client's ``init``, ``log`` and ``finish`` for each run. Only for runs that no server knows:
``sync`` appends.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from sweeper.track.base import TrackingError

PARALLEL = 4
BATCH_SECONDS = 60.0
"""Time for one batch, and a second more for each of its runs; the client retries requests within it."""


class Uploader:
    """A thread that uploads what it is given, in batches: what comes while one is under way makes the next.

    The first failure is the last batch: it is raised by `check` and `wait`. Files of which the server has all bear
    W&B's own marker (`RunFile.synced`); of the others it may have any part.

    Parameters
    ----------
    wandb:
        The module, set up.
    """

    def __init__(self, wandb: Any) -> None:
        self._wandb = wandb
        self._waiting: list[Path] = []
        self._changed = threading.Condition()
        self._is_busy = False
        self._error: str | None = None

    def add(self, path: Path) -> None:
        """Upload a file, soon."""
        with self._changed:
            self._waiting.append(path)
            if not self._is_busy:
                self._is_busy = True
                threading.Thread(target=self._work, daemon=True, name="upload").start()

    def check(self) -> None:
        """Raise `TrackingError` when an upload has failed."""
        if self._error is not None:
            raise TrackingError(self._error)

    def wait(self) -> None:
        """Wait until all is uploaded, or until one failed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_busy)
        self.check()

    def _work(self) -> None:
        while True:
            with self._changed:
                batch, self._waiting = self._waiting, []
                if not batch or self._error is not None:
                    self._is_busy = False
                    self._changed.notify_all()
                    return
            try:
                self._sync(batch)
            except Exception as error:  # of the client, or of its service process: all that matters is that it failed
                self._error = f"W&B did not take finished runs: {type(error).__name__}: {error}"

    def _sync(self, paths: list[Path]) -> None:
        from wandb.sdk.lib import wbauth

        setup = self._wandb.setup()
        host = setup.settings.base_url
        if wbauth.authenticate_session(host=host, source="sweeper", no_offline=True) is None:
            raise TrackingError(f"not logged in at {host}")
        service = setup.ensure_service()
        seconds = BATCH_SECONDS + len(paths)

        async def sync() -> Any:
            asked = await service.init_sync(
                set(paths), setup.settings, cwd=None, live=False, entity="", project="", run_id="", job_type="",
                tag_replacements={},
            )  # fmt: skip
            begun = await asked.wait_async(timeout=seconds)
            done = await service.sync(begun.id, parallelism=PARALLEL)
            return await done.wait_async(timeout=seconds)

        answer = setup.asyncer.run(sync)
        missing = [path for path in paths if not path.with_name(path.name + ".synced").exists()]
        if missing:
            said = [message.content for message in answer.messages if missing[0].parent.name in message.content]
            raise TrackingError(f"{len(missing)} of {len(paths)} are incomplete: {' '.join(said)[:300]}")
