"""The other set on which forgetting is measured: checked and prepared beside the study's own data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeper.core.errors import InputError, Problem
from sweeper.data.prepare import prepare, retention_folder
from sweeper.spec.study import DataSpec, StudySpec, TaskSpec

_HALVES = {"validation": 0.05, "test": 0.475}  # the rest fits the probe; validation is not used
_PLACE = "task.retention"


def retention_problems(spec: StudySpec, wanted: Mapping[str, Any]) -> list[Problem]:
    """Return what speaks against measuring what the study asks for."""
    asked = spec.task.retention
    if asked is None:
        return []
    if wanted["target"] == "boxes":
        return [Problem(_PLACE, "detectors are not probed", spec.task.type, "remove it")]
    if asked.objective == "pretraining" and wanted["kind"] == "image":
        rule = "only models of text can be asked what they were pretrained for"
        return [Problem(f"{_PLACE}.objective", rule, asked.objective, "write probe")]
    if asked.objective == "pretraining" and not isinstance(asked.columns.input, str):
        return [Problem(f"{_PLACE}.columns.input", "must name the column of the text", "nothing", "name it")]
    return []


def prepare_retention(spec: StudySpec, folder: Path, kind: str) -> str:
    """Prepare the other set in a sub-folder of the study's prepared data, and return its fingerprint.

    Raises
    ------
    InputError
        As `sweeper.data.prepare.prepare`, at places of this section.
    """
    asked = spec.task.retention
    assert asked is not None, "asked for a study without it"
    columns, target, own = asked.columns, "class", asked.objective == "pretraining"
    if own:  # a text is its own target
        columns, target = columns.model_copy(update={"target": columns.input}), "text"
    data = DataSpec(train=asked.data, max_train_examples=asked.max_examples, **_HALVES)
    task = TaskSpec(type=f"{kind}-classification", data=data, columns=columns)
    home = retention_folder(folder)
    try:
        found = prepare(task, kind=kind, seed=spec.seed, folder=home, target=target, own_target=own)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(
            [
                replace(problem, place=problem.place.replace("task.data.train", f"{_PLACE}.data", 1))
                for problem in error.problems
            ]
        ) from None
    return found.fingerprint
