"""The launches that this user made from this machine: one small file each, so that a name is all that is needed."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeper.core.errors import InputError, Problem

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class LaunchRecord:
    """What is remembered of a launch. No secret: a token is looked up anew where the profile says.

    Parameters
    ----------
    name, study:
        Of the launch, and of the study.
    profile:
        The profile as it was then (JSON).
    profile_name:
        How it was called.
    handle:
        The cluster's own name of the launch.
    results:
        The result folder, as the cluster sees it.
    launched_at:
        Seconds since 1970.
    """

    name: str
    study: str
    profile: dict[str, Any]
    profile_name: str
    handle: str
    results: str
    launched_at: float


def launches_folder() -> Path:
    """Return ``$SWEEPER_STATE``, or sweeper's folder below ``$XDG_STATE_HOME`` (``~/.local/state``)."""
    if own := os.environ.get("SWEEPER_STATE"):
        return Path(own)
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "sweeper"


def home_of(name: str) -> Path:
    """Return the folder of one launch on this machine."""
    return launches_folder() / name


def new_name(study: str, now: float | None = None) -> str:
    """Return a name for a launch: the study's, the time, and four random letters; fit for Kubernetes and SLURM.

    KubeRay's operator takes names of RayJobs that begin with a letter and have at most 47 characters.
    """
    stamp = time.strftime("%m%d-%H%M", time.gmtime(now))
    base = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")
    base = (base if base[:1].isalpha() else f"study-{base}")[:28].strip("-")
    return f"{base}-{stamp}-{secrets.token_hex(2)}"


def remember(record: LaunchRecord) -> None:
    """Write a launch down."""
    from sweeper.store.paths import replace_file

    folder = home_of(record.name)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = json.dumps(asdict(record), indent=2) + "\n"
    replace_file(folder / "launch.json", lambda path: path.write_text(text))


def is_launch(name: str) -> bool:
    """Whether a launch of this name was made from here."""
    return bool(_NAME.fullmatch(name)) and (home_of(name) / "launch.json").is_file()


def recall(name: str) -> LaunchRecord:
    """Return the launch of a name.

    Raises
    ------
    InputError
        When none was made from this machine.
    """
    if not is_launch(name):
        known = sorted(path.parent.name for path in launches_folder().glob("*/launch.json"))[-5:]
        remedy = f"latest launches: {', '.join(known)}" if known else "nothing was launched from this machine yet"
        raise InputError(Problem("NAME", "must be the name of a launch made from this machine", name, remedy))
    return LaunchRecord(**json.loads((home_of(name) / "launch.json").read_text()))
