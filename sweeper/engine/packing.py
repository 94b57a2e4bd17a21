"""How many lanes share a GPU: as many as fit by the measured peak of the hungriest model, with a margin.

Ray counts shares of a GPU and knows nothing of its memory. So a probe trains a step of every model on a GPU of its own,
and each lane is then kept to its share: a lane that needs more halves its micro-batch instead of starving the others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from sweeper.core.space import Categorical, Params, SearchSpace
from sweeper.engine.lanes import UPSCALING_SECONDS
from sweeper.engine.worker_config import WorkerConfig

logger = logging.getLogger("sweeper")

MARGIN = 1.25  # batches of other shapes leave gaps between blocks, and libraries take workspaces as they need them
RESERVE = 0.05  # of the device, for what no process accounts for
WAIT_SECONDS = 0.5  # between two looks whether a probe is done
MOST_LANES = 100  # shares below a hundredth are of no use to Ray or to anyone


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What a probe measured.

    Parameters
    ----------
    peaks:
        By model: bytes of the device that training took at most.
    context_bytes:
        What each process takes beside them.
    total_bytes:
        The device's memory.
    """

    peaks: Mapping[str, int]
    context_bytes: int
    total_bytes: int

    @property
    def lanes(self) -> int:
        """Lanes that a GPU holds, at least 1."""
        each = max(self.peaks.values()) * MARGIN + self.context_bytes
        return max(1, min(MOST_LANES, int(self.total_bytes * (1 - RESERVE) / each)))

    @property
    def share(self) -> float:
        """A lane's share of a GPU as Ray counts it, in ten-thousandths, rounded down so that all lanes fit."""
        return 1.0 if self.lanes == 1 else 10_000 // self.lanes / 10_000


def hungriest(space: SearchSpace) -> Params:
    """Return the configuration of a space that takes most memory: all blocks trained, if it may, on large batches."""
    params = dict(space.default)
    for parameter in space:
        if parameter.name == "batch_size":
            params["batch_size"] = _largest(parameter)
        if parameter.name == "unfreezing" and isinstance(parameter, Categorical) and "full" in parameter.choices:
            params["unfreezing"] = "full"
    return {"batch_size": 32, **space.active(params)}


def _largest(parameter: Any) -> int:
    values: Any = parameter.choices if isinstance(parameter, Categorical) else [parameter.high]
    return int(max(values))


def measured_packing(
    config: WorkerConfig,
    probes: Mapping[str, Params],
    resources: Mapping[str, float],
    labels: Mapping[str, str],
    interrupted: Callable[[], bool],
) -> Packing | None:
    """Let a process with a GPU of its own train a step of every model; None where that failed.

    A GPU that others hold is waited for as long as a node that is yet to come, or until ``interrupted``.

    Parameters
    ----------
    config:
        Of a lane that has a GPU.
    probes:
        By model: its hungriest configuration.
    resources:
        What a lane asks for beside its GPU.
    labels:
        Of the nodes that take lanes.
    """
    others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU", "memory")}
    task: Any = ray.remote(_probe).options(
        num_gpus=1,
        num_cpus=resources.get("CPU", 0),
        memory=resources.get("memory"),
        resources=others,
        label_selector=dict(labels) or None,
        max_retries=0,
    )
    reference = task.remote(config, dict(probes))
    deadline = time.monotonic() + UPSCALING_SECONDS
    try:
        while not ray.wait([reference], timeout=WAIT_SECONDS)[0]:
            if interrupted() or time.monotonic() > deadline:
                ray.cancel(reference, force=True)
                logger.warning("no GPU was free to measure the memory of a lane: each gets one of its own")
                return None
        packing: Packing = ray.get(reference)
    except ray.exceptions.RayError as error:
        text = " ".join(str(error).split())[-200:]
        logger.warning("the memory of a lane could not be measured (%s): each gets a GPU of its own", text)
        return None
    return packing


def _probe(config: WorkerConfig, probes: Mapping[str, Params], memory: Callable[[], Any] | None = None) -> Packing:
    """Measure in this process."""
    from sweeper.train.footprint import CudaMemory

    device = (memory or CudaMemory)()
    worker = config.start()
    peaks = {model: worker.peak_bytes(model, params, device) for model, params in probes.items()}
    device.reset()
    return Packing(peaks=peaks, context_bytes=device.context_bytes(), total_bytes=device.total_bytes)
