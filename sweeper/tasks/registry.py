"""Looking tasks up: built-ins by name, a user's own as ``package.module:Class``."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from sweeper.core.errors import InputError, Problem
from sweeper.spec.study import TaskSpec
from sweeper.tasks.base import Task

BUILT_IN = {
    "text-classification": "sweeper.tasks.text_classification:TextClassification",
    "image-classification": "sweeper.tasks.image_classification:ImageClassification",
}


def task_class(name: str) -> Any:
    """Return the class of a task.

    Raises
    ------
    InputError
        When there is no such built-in, or the named class cannot be imported.
    """
    target = BUILT_IN.get(name, name)
    if ":" not in target:
        near = difflib.get_close_matches(name, BUILT_IN, n=1)
        remedy = f"did you mean {near[0]}?" if near else "or give your own as package.module:Class"
        raise InputError(Problem("task.type", f"must be one of {', '.join(BUILT_IN)}", name, remedy))
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        remedy = "install the package, or correct the name"
        raise InputError(Problem("task.type", f"must be importable ({error})", name, remedy)) from None


def make_task(spec: TaskSpec, classes: Sequence[str]) -> Task:
    """Build the study's task for the classes found in the data."""
    task: Task = task_class(spec.type)(spec, classes)
    return task
