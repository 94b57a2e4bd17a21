"""What is said for a process that cannot say it any more."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, signal, sys
from sweeper.engine.last_words import last_words
with last_words("kept; 100% of it: resume 'x'"):
    {}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("os._exit(1)", 1), ("os.kill(os.getpid(), signal.SIGKILL)", -9), ("os.killpg(0, signal.SIGKILL)", -9)],
)
def test_a_process_that_is_ended_has_last_words(end, code):
    ended = subprocess.run([sys.executable, "-c", CODE.format(end)], capture_output=True, text=True, process_group=0)
    assert ended.returncode == code
    assert ended.stderr == "kept; 100% of it: resume 'x'\n"


@pytest.mark.parametrize(("end", "said"), [("pass", ""), ("sys.exit(3)", ""), ("raise ValueError", "ValueError")])
def test_a_process_that_ends_by_itself_has_none(end, said):
    ended = subprocess.run([sys.executable, "-c", CODE.format(end)], capture_output=True, text=True)
    assert "kept" not in ended.stderr
    assert said in ended.stderr
