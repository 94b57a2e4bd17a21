"""Derived tables, built once per machine and memory-mapped by every lane."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa


def encoded(folder: Path, key: str, build: Callable[[], pa.Table]) -> pa.Table:
    """Return the table kept under ``key``, building it first where it is missing.

    Several processes may ask at once: one builds, the others wait. A builder that dies leaves no lock behind. On a disk
    that knows no locks (NFS without them) several may build, each for itself, and the first table stays: others may
    have mapped it.

    Parameters
    ----------
    folder:
        Where the tables lie.
    key:
        Safe as a file name; must name everything that the table depends on.
    build:
        Makes the table.
    """
    path = folder / f"{key}.arrow"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{key}.lock").open("w") as lock:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel when its holder dies
            if not path.exists():
                table = build()
                if not path.exists():
                    write_table(path, table)
    return map_table(path)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as one record batch, so that its columns map without a copy; whole or not at all."""
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    table = table.combine_chunks()
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(table)))
    partial.replace(path)


def map_table(path: Path) -> pa.Table:
    """Memory-map a table written by `write_table`."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
