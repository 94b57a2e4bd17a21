"""Every file name of a result folder, in one place."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ResultPaths:
    """The files of one study. What readers may rely on stands first; ``.scratch`` may be deleted after a run."""

    root: Path

    @property
    def manifest(self) -> Path:
        """Versions, fingerprints, seeds, test openings."""
        return self.root / "manifest.json"

    @property
    def study(self) -> Path:
        """The study as resolved."""
        return self.root / "study.yaml"

    @property
    def trials(self) -> Path:
        """A row per search trial."""
        return self.root / "trials.parquet"

    @property
    def measurements(self) -> Path:
        """A row per search trial and epoch."""
        return self.root / "measurements.parquet"

    @property
    def confirmations(self) -> Path:
        """A row per confirmation run, split and metric."""
        return self.root / "confirmations.parquet"

    @property
    def predictions(self) -> Path:
        """A row per confirmation run and test example."""
        return self.root / "predictions.parquet"

    def best(self, model: str) -> Path:
        """Return the folder of a model's best configuration and checkpoint."""
        return self.root / "best" / model

    @property
    def report(self) -> Path:
        """HTML, Markdown and leaderboard."""
        return self.root / "report"

    @property
    def wandb(self) -> Path:
        """W&B's offline files."""
        return self.root / "wandb"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files, a folder a trial."""
        return self.root / "tensorboard"

    @property
    def tracking_log(self) -> Path:
        """What the tracking process and its clients said."""
        return self.scratch / "tracking.log"

    @property
    def ledger(self) -> Path:
        """The append-only record of everything that happened."""
        return self.root / "ledger.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the one process that writes."""
        return self.root / "lock.json"

    @property
    def scratch(self) -> Path:
        """What can be made again: data, encodings, snapshots, weights of confirmation runs."""
        return self.root / ".scratch"

    @property
    def data(self) -> Path:
        """The prepared splits."""
        return self.scratch / "data"

    @property
    def encoded(self) -> Path:
        """Tokenised and decoded splits, memory-mapped by the lanes."""
        return self.scratch / "encoded"

    @property
    def activations(self) -> Path:
        """States of frozen blocks, memory-mapped by the lanes."""
        return self.scratch / "activations"

    @property
    def snapshots_root(self) -> Path:
        """Snapshots of all unfinished trials."""
        return self.scratch / "snapshots"

    def snapshots(self, trial_id: str) -> Path:
        """Return the folder of one trial's snapshots."""
        return self.snapshots_root / trial_id

    def confirmation_weights(self, trial_id: str) -> Path:
        """Return the folder of one confirmation run's best-epoch weights."""
        return self.scratch / "confirmed" / trial_id

    @property
    def predictions_parts(self) -> Path:
        """One file per tested confirmation run."""
        return self.scratch / "predictions"

    def predictions_part(self, trial_id: str) -> Path:
        """Return the predictions file of one confirmation run."""
        return self.predictions_parts / f"{trial_id}.parquet"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, then put it in place: readers see the old file or the new one, whole.

    The file and its folder are synced, so that the new content survives a power cut once this returns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
