"""Writing a whole W&B run file at once, for a run of which nobody has been told yet.

The client needs a start, some 25 messages between two processes and a wait for the end. That is more than a short
trial may cost, and all of it serves a run that is followed while it lives. A trial that has ended before W&B hears of
it is written down in one go: the same records that the client would have written, with the times of the trial, which
the client cannot say afterwards.

The format is described in `sweeper.track.wandb_files`; W&B's own tools read such a file (``wandb sync``).
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import time
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.track.wandb_content import CONTENT_KEY, RunContent
from sweeper.track.wandb_files import BLOCK_BYTES, CHUNK, FIRST, FULL, HEADER, LAST, MIDDLE

_MIN_CONSUMER = "0.70.0"
"""The oldest client that reads these records, as W&B's own states it."""
_PARTIAL = ".partial-"


@dataclass(frozen=True, kw_only=True)
class Common:
    """What all runs of a study have in common.

    Parameters
    ----------
    metric, goal:
        The metric of which W&B is to keep the best value, and ``max`` or ``min``.
    """

    group: str
    project: str
    entity: str
    notes: str
    metric: str
    goal: str


def write_run_file(folder: Path, run: RunContent, common: Common, *, known: Collection[int], online: bool) -> Path:
    """Write ``run`` below the ``wandb`` folder, whole or not at all, and return the file.

    Parameters
    ----------
    known:
        Steps that a server has already; their rows are left out.
    online:
        Name the folder as one that a server may know (``run-…``); ``offline-run-…`` is left to ``wandb sync``.
    """
    partial = folder / f"{_PARTIAL}{run.run_id}"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "files").mkdir(parents=True)
    records = (record.SerializeToString() for record in _records(run, common, known))
    (partial / f"run-{run.run_id}.wandb").write_bytes(_framed(records))
    now = time.time()
    while True:
        stamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(now))
        home = folder / f"{'' if online else 'offline-'}run-{stamp}-{run.run_id}"
        if not home.exists():
            break
        now += 1
    partial.rename(home)
    return home / f"run-{run.run_id}.wandb"


def remove_partial(folder: Path) -> None:
    """Remove what a killed writer left."""
    for path in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def _records(run: RunContent, common: Common, known: Collection[int]) -> Iterator[Any]:
    """Say the run in W&B's records, in the order in which the client writes them."""
    import wandb
    from wandb.proto import wandb_internal_pb2 as pb

    number = 0

    def record(**body: Any) -> Any:
        nonlocal number
        number += 1
        return pb.Record(num=number, _info={"stream_id": run.run_id}, **body)  # type: ignore[attr-defined]

    yield record(header={"version_info": {"producer": wandb.__version__, "min_consumer": _MIN_CONSUMER}})
    telemetry = {"python_version": platform.python_version(), "cli_version": wandb.__version__}
    head = record(
        run={
            "run_id": run.run_id,
            "display_name": run.name,
            "run_group": common.group,
            "job_type": run.job_type,
            "project": common.project,
            "entity": common.entity,
            "notes": common.notes,
            "tags": run.tags,
            "host": platform.node(),
            "config": {"update": _items({"_wandb": {}, **run.config})},
            "telemetry": telemetry,
        }
    )
    head.run.start_time.FromNanoseconds(int(run.began * 1e9))
    yield head
    yield record(telemetry=telemetry)
    yield record(metric={"name": "epoch", "options": {"defined": True}})
    follows = {"step_metric": "epoch", "options": {"step_sync": True, "defined": True}}
    yield record(metric={"glob_name": "*", **follows})
    yield record(metric={"name": common.metric, **follows, "summary": {common.goal: True}})
    last: dict[str, Any] = {}
    for step, row in sorted(run.rows.items()):
        seconds = float(row.get("elapsed_seconds", 0.0))
        last = {**row, "_step": step, "_runtime": seconds, "_timestamp": run.began + seconds}
        if step not in known:
            items = [{"nested_key": [key], "value_json": text} for key, text in _texts(last)]
            yield record(history={"item": items, "step": {"num": step}})
    values = [value for row in run.rows.values() if math.isfinite(value := row.get(common.metric, math.nan))]
    last.pop(common.metric, None)
    best = {common.metric: {common.goal: (max if common.goal == "max" else min)(values)}} if values else {}
    yield record(summary={"update": _items({**last, **run.summary, **best, CONTENT_KEY: run.digest})})
    seconds = int(last.get("_runtime", 0))
    yield record(summary={"update": [{"nested_key": ["_wandb", "runtime"], "value_json": str(seconds)}]})
    yield record(exit={"exit_code": run.exit_code, "runtime": seconds})


def _items(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"key": key, "value_json": text} for key, text in _texts(values)]


def _texts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """JSON as W&B writes it: NaN and infinities by Python's names, what is not JSON as text."""
    for key, value in values.items():
        yield key, json.dumps(value, default=str)


def _framed(records: Iterator[bytes]) -> bytes:
    """Put records into the blocks of a log, as W&B's reader expects them."""
    out = bytearray(HEADER)
    for data in records:
        at, is_first = 0, True
        while is_first or at < len(data):
            left = BLOCK_BYTES - len(out) % BLOCK_BYTES
            if left < CHUNK.size:
                out += bytes(left)
                left = BLOCK_BYTES
            part = data[at : at + left - CHUNK.size]
            at += len(part)
            is_last = at == len(data)
            kind = (FULL if is_last else FIRST) if is_first else (LAST if is_last else MIDDLE)
            out += CHUNK.pack(zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            is_first = False
    return bytes(out)
