"""What the processes below this one use, from ``/proc``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def descendants() -> dict[tuple[int, int], float]:
    """Return the processes below this one: CPU seconds by process id and start time."""
    parents: dict[int, int] = {}
    seconds: dict[tuple[int, int], float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry.name)] = int(fields[1])
                seconds[int(entry.name), int(fields[19])] = (int(fields[11]) + int(fields[12])) / TICKS
    found, new = set(), {os.getpid()}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return {key: value for key, value in seconds.items() if key[0] in found}


def memory(pid: int) -> dict[str, int]:
    """Return a process's bytes: ``Rss``, ``Pss`` (shared pages by share), ``Private`` (its own alone)."""
    found = dict.fromkeys(("Rss", "Pss", "Private"), 0)
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, value, *_ = line.split()
            name = name.rstrip(":").replace("Private_Clean", "Private").replace("Private_Dirty", "Private")
            if name in found:
                found[name] += 1024 * int(value)
    return found


def mapped(pid: int, below: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield each file below a folder that a process has mapped, with ``Size``, ``Rss`` and ``Private_Dirty``."""
    with suppress(OSError):
        path, numbers = "", {}
        for line in [*Path(f"/proc/{pid}/smaps").read_text().splitlines(), "0-0 end"]:
            words = line.split()
            if not words[0].endswith(":"):
                if path.startswith(below):
                    yield path, numbers
                path, numbers = (words[5] if len(words) > 5 else ""), {}
            elif words[0][:-1] in ("Size", "Rss", "Private_Dirty"):
                numbers[words[0][:-1]] = 1024 * int(words[1])


def role(pid: int) -> str:
    """Name what a process of a sweep is, from its command line."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
    if text.startswith("ray::"):
        return text.split()[0][5:].split(".")[0].rstrip(":")
    for word in text.split()[:6]:
        name = Path(word).name
        if name in ("gcs_server", "raylet") or name.endswith(".py"):
            return f"Ray's {name}"
    return "driver" if "sweeper" in text else text[:40]
