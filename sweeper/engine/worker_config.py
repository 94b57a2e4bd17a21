"""What the driver tells a lane's workers about the study; imports neither torch nor transformers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeper.spec.study import StudySpec
from sweeper.store.paths import ResultPaths
from sweeper.train.options import TrainOptions

if TYPE_CHECKING:
    from sweeper.engine.worker import TrainingWorker


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Everything a worker needs to know; small, sent once per lane.

    Parameters
    ----------
    spec:
        The resolved study.
    paths:
        The result folder: on an object store, or its scratch part reachable from every node.
    options:
        Device, precision and batch limits, equal for all models of the study.
    cpus:
        Threads of this worker.
    gpu_share:
        The worker's share of its GPU, whose memory it then keeps to.
    context_bytes:
        Of that share, what its process takes beside the allocator.
    profiled:
        Whether the worker keeps where its time went, see `write_spans`.
    """

    spec: StudySpec
    paths: ResultPaths
    options: TrainOptions
    cpus: int
    gpu_share: float = 1.0
    context_bytes: int = 700 * 2**20  # where no probe measured it: the driver's context and the kernels of torch
    profiled: bool = False

    def start(self) -> TrainingWorker:
        """Make the worker; call this in its process, which then pays for the heavy imports."""
        began = time.time()
        from sweeper.engine.worker import TrainingWorker

        return TrainingWorker(self, began)
