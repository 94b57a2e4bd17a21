r"""Reading W&B's run files (``run-ID.wandb``) back: what they hold, and what is on disk for a run.

The format is that of LevelDB's log: a header of 7 bytes (``:W&B``, a magic number, a version), then blocks of 32 KiB of
chunks ``crc32, length, type`` with a part of a record each; a record is a message of ``wandb_internal.proto``. A file
that was cut off by a kill ends with its last whole record.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER = b":W&B\xe1\xbe\x00"
BLOCK_BYTES = 32 * 1024
CHUNK = struct.Struct("<IHB")  # checksum, length, type
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class RunFile:
    """One run file, read back.

    Parameters
    ----------
    online:
        Written by a run that talked to a server: the server may hold any part of it.
    finished:
        The run was ended in order; else the process died.
    rows:
        The history in order, a dictionary a row with ``_step``.
    """

    path: Path
    run_id: str = ""
    online: bool = False
    finished: bool = False
    exit_code: int = 0
    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)
    """``(type, name, aliases)`` of those that the run brought forth, in order."""
    inputs: list[str] = field(default_factory=list)
    """Names of the artifacts that it was given."""
    metrics: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By name or pattern what was defined of a metric: its step, and ``max``, ``min`` or nothing."""

    @property
    def synced(self) -> bool:
        """Whether W&B's own marker stands beside the file: the server holds all of it. A user may sync at any time."""
        return self._marker.exists()

    def mark_synced(self) -> None:
        """Set W&B's own marker, so that ``wandb sync`` leaves the file alone."""
        self._marker.touch()

    @property
    def _marker(self) -> Path:
        return self.path.with_name(self.path.name + ".synced")


def run_files(folder: Path, run_id: str | None = None) -> list[RunFile]:
    """Return what the ``wandb`` folder holds, the oldest first: of one run, or of all."""
    found = []
    for path in sorted(folder.glob(f"*run-*-{run_id or '*'}/run-*.wandb")):
        if path.parent.is_symlink():
            continue
        found.append(read_run_file(path))
    return found


def run_states(folder: Path) -> list[RunFile]:
    """Return what the names alone say of the ``wandb`` folder: ids, online or not, synced or not."""
    paths = sorted(path for path in folder.glob("*run-*-*/run-*.wandb") if not path.parent.is_symlink())
    return [_named(path) for path in paths]


def read_run_file(path: Path) -> RunFile:
    """Read one file as far as it is whole."""
    from wandb.proto import wandb_internal_pb2 as pb

    run = _named(path)
    for data in _records(path.read_bytes()):
        record = pb.Record.FromString(data)  # type: ignore[attr-defined]
        _fold(run, record)
    return run


def _named(path: Path) -> RunFile:
    return RunFile(path, path.stem.removeprefix("run-"), online=not path.parent.name.startswith("offline-"))


def _fold(run: RunFile, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        body = record.run
        run.name, run.group, run.job_type = body.display_name, body.run_group, body.job_type
        run.project, run.tags = body.project, list(body.tags)
        _update(run.config, body.config.update)
    elif kind == "config":
        _update(run.config, record.config.update)
    elif kind == "summary":
        _update(run.summary, record.summary.update)
    elif kind == "history":
        row: dict[str, Any] = {}
        _update(row, record.history.item)
        row.setdefault("_step", record.history.step.num)
        run.rows.append(row)
    elif kind == "artifact":
        body = record.artifact
        if body.use_after_commit:
            run.inputs.append(body.name)
        else:
            run.artifacts.append((body.type, body.name, tuple(sorted(body.aliases))))
    elif kind == "metric":
        body = record.metric
        kept = "max" if body.summary.max else "min" if body.summary.min else ""
        run.metrics[body.name or body.glob_name] = (body.step_metric, kept)
    elif kind == "exit":
        run.finished, run.exit_code = True, record.exit.exit_code


def _update(target: dict[str, Any], items: Any) -> None:
    for item in items:
        keys = list(item.nested_key) or [item.key]
        inner = target
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = _value(item)


def _value(item: Any) -> Any:
    """History items may hold typed values; all others are JSON text."""
    kind = item.WhichOneof("value_type") if "value_type" in item.DESCRIPTOR.oneofs_by_name else None
    if kind in ("boolean", "integer", "number", "text"):
        return getattr(item, kind)
    if kind == "none":
        return None
    text = item.json if kind == "json" else item.value_json
    return json.loads(text) if text else None


def _records(content: bytes) -> Iterator[bytes]:
    """Put the chunks together; ends at the first thing that is not whole."""
    at, parts = len(HEADER), b""
    while True:
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < CHUNK.size:
            at += left
        if at + CHUNK.size > len(content):
            return
        _, length, kind = CHUNK.unpack_from(content, at)
        at += CHUNK.size
        if kind not in (FULL, FIRST, MIDDLE, LAST) or at + length > len(content):
            return
        parts = content[at : at + length] if kind in (FULL, FIRST) else parts + content[at : at + length]
        at += length
        if kind in (FULL, LAST):
            yield parts
