"""Every error that sweeper raises on purpose.

::

    SweeperError                 exit code 1
    ├── InputError               exit code 2: what the user gave is wrong; carries all problems at once
    │   └── ChangedWorldError    a resume whose plan, data, weights or versions differ
    ├── RunFailedError           exit code 1: the run ended without its result; what is done is kept
    ├── StopRequested            exit code 130: SIGINT or SIGTERM; carries the resume command
    └── TrialError               one trial cannot go on; never ends a sweep
        ├── DivergedError        the loss is not finite                                  -> FAIL
        ├── MismatchError        what ran is not what was asked (promise 5)              -> FAIL
        └── InfeasibleError      the configuration cannot run on this hardware or data   -> INFEASIBLE
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the input: where, which rule, the value seen, what to do.

    Parameters
    ----------
    place:
        ``study.yaml:6:3 models.0.name`` or a path: where the user looks first.
    rule:
        What must hold, as a statement ("must be at least 1").
    value:
        The offending value as text, shortened by the printer.
    remedy:
        What to do next, as an imperative.
    """

    place: str
    rule: str
    value: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        value = self.value if len(self.value) <= 120 else self.value[:117] + "..."
        text = self.place + ": " + self.rule
        if value:
            text += f", got {value}"
        if self.remedy:
            text += f"; {self.remedy}"
        return " ".join(text.split())  # one problem is one line, whatever the user's values hold


class SweeperError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


_OF_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EFBIG, errno.ENXIO}


_CODE = re.compile(r"(?:\[Errno|\[errno|\(os error) (\d+)[\])]")
"""How `shutil.Error`, Arrow and safetensors, which is written in Rust, say it in their texts."""


def is_of_storage(error: BaseException) -> bool:
    """Whether a disk or store is to blame, full, broken, read-only or gone, and no trial and no input is."""
    codes = {int(code) for code in _CODE.findall(str(error))}
    if isinstance(error, OSError) and error.errno is not None:
        codes.add(error.errno)
    return bool(codes & _OF_STORAGE)


def storage_reason(error: BaseException, place: object) -> str:
    """Say in one line which file or folder failed, ``place`` where the error names none, and why."""
    where = getattr(error, "filename", None) or place
    why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return f"{where}: {why}"


def is_of_peers(error: BaseException) -> bool:
    """Whether another worker of the same trial is gone, and nothing that this one did is to blame.

    NCCL has an error of its own for that (`torch.distributed.DistError`); gloo raises a `RuntimeError` that names the
    source file of its transport.
    """
    is_of_torch = any(kind.__name__ == "DistError" for kind in type(error).__mro__)
    return is_of_torch or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


class InputError(SweeperError):
    """The input is wrong; nothing has been written. ``problems`` lists all of them."""

    exit_code = 2

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:  # crosses process borders whole
        return (type(self), (self.problems,))


class ChangedWorldError(InputError):
    """A resume whose plan, data, weights or package versions differ from those of the manifest."""


class RunFailedError(SweeperError):
    """The run ended without its result; finished trials are kept."""


class StopRequested(SweeperError):  # noqa: N818 - not an error of anyone
    """The user or the system asked the run to stop; state is saved."""

    exit_code = 130


class TrialError(SweeperError):
    """One trial cannot go on. Recorded with its reason; the sweep continues."""


class DivergedError(TrialError):
    """The loss or a metric is not finite."""


class MismatchError(TrialError):
    """The live optimizer, loader or model differs from the trial's configuration (promise 5)."""


class InfeasibleError(TrialError):
    """The configuration cannot run on this hardware or data (for example out of memory at micro-batch 1)."""
