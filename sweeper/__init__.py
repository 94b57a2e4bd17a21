"""sweeper: every model at its tuned best, at equal effort.

The public names are loaded on first use, so that ``import sweeper`` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["StudyResult", "StudySpec", "load_results", "load_study", "resume", "run"]

if TYPE_CHECKING:
    from sweeper.spec.load import load_study
    from sweeper.spec.study import StudySpec
    from sweeper.workflows.results import StudyResult, load_results
    from sweeper.workflows.sweep import resume, run

_HOMES = {
    "load_study": "sweeper.spec.load",
    "StudySpec": "sweeper.spec.study",
    "StudyResult": "sweeper.workflows.results",
    "load_results": "sweeper.workflows.results",
    "resume": "sweeper.workflows.sweep",
    "run": "sweeper.workflows.sweep",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sweeper' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
