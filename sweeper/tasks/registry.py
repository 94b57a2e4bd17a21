"""Looking tasks up: built-ins by name, a user's own as ``package.module:Class``."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from sweeper.core.errors import InputError, Problem
from sweeper.core.head import TargetFacts
from sweeper.spec.study import TaskSpec
from sweeper.tasks.base import Task
from sweeper.tasks.labelled import input_kind

BUILT_IN = {
    "text-classification": "sweeper.tasks.text_classification:TextClassification",
    "image-classification": "sweeper.tasks.image_classification:ImageClassification",
    "multi-label-classification": "sweeper.tasks.multi_label:MultiLabelClassification",
    "text-generation": "sweeper.tasks.text_generation:TextGeneration",
    "regression": "sweeper.tasks.regression:Regression",
    "object-detection": "sweeper.tasks.object_detection:ObjectDetection",
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


def make_task(spec: TaskSpec, facts: TargetFacts | Sequence[str]) -> Task:
    """Build the study's task for the targets found in the data; a plain sequence is the classes."""
    task: Task = task_class(spec.type)(spec, facts)
    return task


def needs(spec: TaskSpec) -> dict[str, Any]:
    """Return what ``data.prepare`` must know of the task: the kind of its inputs and of its targets."""
    found = task_class(spec.type)
    kind = input_kind(spec, getattr(found, "input_kind", None))
    return {"kind": kind, "target": getattr(found, "target_kind", "class")}
