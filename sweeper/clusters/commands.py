"""Other programs (kubectl, sbatch, ray): run with a time limit, their failures told in one line."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

from sweeper.core.errors import InputError, Problem, RunFailedError

TIMEOUT_SECONDS = 120.0


def run(words: Sequence[str], *, stdin: str = "", timeout_seconds: float = TIMEOUT_SECONDS) -> str:
    """Run a command and return its standard output.

    Raises
    ------
    InputError
        When there is no such program.
    RunFailedError
        When it failed or did not end in time.
    """
    done = attempt(words, stdin=stdin, timeout_seconds=timeout_seconds)
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[-400:]
        raise RunFailedError(f"`{_short(words)}` ended with code {done.returncode}: {said or 'it said nothing'}")
    return done.stdout


def attempt(
    words: Sequence[str], *, stdin: str = "", timeout_seconds: float = TIMEOUT_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a command whose failure is an answer; see `run` for what is raised beside that."""
    try:
        return subprocess.run(
            words, input=stdin, capture_output=True, text=True, errors="replace", timeout=timeout_seconds, check=False
        )
    except (FileNotFoundError, PermissionError):
        remedy = f"install {words[0]}, or name its path in the profile"
        raise InputError(Problem(words[0], "the program must be on the path", "not found", remedy)) from None
    except subprocess.TimeoutExpired:
        raise RunFailedError(f"`{_short(words)}` did not end within {timeout_seconds:g} s") from None


def _short(words: Sequence[str]) -> str:
    text = shlex.join(words)
    return text if len(text) <= 160 else text[:157] + "..."
