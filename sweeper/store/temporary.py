"""Temporary folders that outlive no run for long: what a killed process left is removed by the next one."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sweeper.store.lock import is_alive, myself

_NAME = re.compile(r"sweeper-(\d+)-(\d+)-(\d+)-\w+")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder of this process and remove it afterwards, and those of this user's dead processes now."""
    for left in left_behind(Path(tempfile.gettempdir())):
        shutil.rmtree(left, ignore_errors=True)
    me = myself()
    with tempfile.TemporaryDirectory(prefix=f"sweeper-{_world()}-{me['pid']}-{me['started']}-") as folder:
        yield Path(folder)


def left_behind(home: Path) -> Iterator[Path]:
    """Find the folders of this user's processes that are dead."""
    me = myself()
    for folder in home.glob("sweeper-*-*-*-*"):
        found = _NAME.fullmatch(folder.name)
        if found is None or int(found[1]) != _world() or folder.is_symlink():
            continue
        with suppress(OSError):
            mine = folder.stat().st_uid == os.getuid()
            if mine and not is_alive({**me, "pid": int(found[2]), "started": found[3]}):
                yield folder


def _world() -> int:
    """Name the world in which a process id means anything: containers may share a folder for temporary files."""
    return Path("/proc/self/ns/pid").stat().st_ino
