"""What is said when this process is ended without a chance to say it itself."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

# Reads what the process writes when it is done; the end of the pipe without it means that the process is gone.
_SPEAKER = 'read -r done || printf "%s\\n" "$1" >&2'


@contextmanager
def last_words(text: str) -> Iterator[None]:
    """Let ``text`` be written to standard error if this process ends inside the block.

    By SIGKILL, or by Ray, which ends a driver whose raylet has died by ``_exit`` and often without a word. Leaving the
    block in any way, by an exception too, says nothing.
    """
    speaker = subprocess.Popen(
        ["/bin/sh", "-c", _SPEAKER, "sh", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # it outlives a Ctrl-C at the terminal, and a kill of the process group
    )
    try:
        yield
    finally:
        speaker.communicate(b"done\n")
