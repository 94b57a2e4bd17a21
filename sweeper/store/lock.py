"""One writer per result folder on a disk. The lock file names the process and host that hold it.

A holder on this host is checked for life (process id and start time); a dead one is replaced. A holder on another
host cannot be checked and is refused: the user deletes the file once sure. Object stores have leases instead, see
`sweeper.store.lease`.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from sweeper.core.errors import InputError, Problem


def take_lock(path: Path) -> str | None:
    """Take the lock; return a note when a dead holder was replaced, else None.

    Raises
    ------
    InputError
        When a living process, or one on another host, holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = myself()
    note = None
    for _ in range(2):
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(mine))
        try:
            os.link(partial, path)  # atomic, and the file is never seen half-written
        except FileExistsError:
            note = _judge(path, mine)
            path.unlink(missing_ok=True)
        else:
            return note
        finally:
            partial.unlink(missing_ok=True)
    raise InputError(Problem(str(path), "only one process may write", "another one just took it", "try again"))


def release_lock(path: Path) -> None:
    """Give the lock back."""
    path.unlink(missing_ok=True)


def myself() -> dict[str, Any]:
    """Return what names this process among all processes of all hosts."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_time(os.getpid())}


def holder(path: Path) -> dict[str, Any] | None:
    """Return who holds the lock and is alive, or None."""
    try:
        other = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return other if isinstance(other, dict) and is_alive(other) else None


def _judge(path: Path, mine: dict[str, Any]) -> str:
    """Return a note when the present holder is dead; raise when it is not, or cannot be known."""
    try:
        other = json.loads(path.read_text())
    except (OSError, ValueError):
        return f"{path.name}: an unreadable lock was replaced"
    who = f"process {other.get('pid')} on {other.get('host')}"
    if other.get("host") != mine["host"]:
        remedy = f"stop it there, or delete {path} once it is surely dead"
        raise InputError(Problem(str(path), "only one process may write to a result folder", who, remedy))
    if is_alive(other):
        remedy = "wait for it or end it; `sweeper status` shows where it stands"
        raise InputError(Problem(str(path), "only one process may write to a result folder", who, remedy))
    return f"{who} had died with the lock; it was replaced"


def is_alive(other: dict[str, Any]) -> bool:
    """Whether the holder's process id is taken by the same process; on another host: assumed."""
    if other.get("host") != socket.gethostname():
        return True
    started = _start_time(other["pid"]) if isinstance(other.get("pid"), int) else None
    return started is not None and other.get("started") == started


def _start_time(pid: int) -> str | None:
    """Return a process's start time in clock ticks since boot, which a recycled id does not share."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
