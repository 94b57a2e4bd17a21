"""Every file name of a result folder, in one place."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sweeper.store.storage import Storage, below, is_url, show, storage_of, working_copy


@dataclass(frozen=True)
class ResultPaths:
    """The files of one study. What readers may rely on stands first; ``.scratch`` may be deleted after a run.

    Parameters
    ----------
    root:
        The folder; where ``url`` is given, this machine's copy of it.
    url:
        Object store and prefix that hold the truth, or empty where the folder does.
    """

    root: Path
    url: str = ""

    @classmethod
    def at(cls, place: str | Path, *, purpose: str = "runs") -> Self:
        """Return the paths of a result folder that is named by a path or a URL.

        Parameters
        ----------
        purpose:
            Which of this machine's copies is meant: that of ``runs``, or of ``readers``, which disturbs no run.
        """
        if isinstance(place, str) and is_url(place):
            return cls(working_copy(place, purpose), place)
        return cls(Path(place))

    @classmethod
    def of(cls, storage_path: str, name: str) -> Self:
        """Return the paths of study ``name`` below a storage path."""
        return cls.at(below(storage_path, name) if is_url(storage_path) else Path(storage_path) / name)

    def here(self) -> Self:
        """Return the same on this machine, whose copy may lie elsewhere than that of the machine it came from."""
        return type(self).at(self.url) if self.url else self

    @property
    def storage(self) -> Storage:
        """What makes files durable, and brings those of other machines here."""
        return storage_of(self.root, self.url)

    @property
    def place(self) -> str:
        """How users know the folder."""
        return show(self.url) or str(self.root)

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

    @property
    def tables(self) -> tuple[Path, Path, Path, Path]:
        """The four tables, in the order above."""
        return self.trials, self.measurements, self.confirmations, self.predictions

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
    def profile(self) -> Path:
        """Where the time went, of a run that was asked for it: ``trace.json`` and ``table.txt``."""
        return self.root / "profile"

    @property
    def spans(self) -> Path:
        """What the profile is made of, a file a process."""
        return self.scratch / "spans"

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

    def built_model(self, name: str) -> Path:
        """Return the checkpoint of a model that a factory built."""
        return self.scratch / "models" / name

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
    def precision(self) -> Path:
        """What the lanes settled ``training.precision: auto`` to."""
        return self.scratch / "precision.json"

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
