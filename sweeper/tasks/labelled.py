"""What all tasks with a head over encoded inputs share: the inputs, the objective, and what does not apply."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from numpy.typing import NDArray

from sweeper.core.errors import InputError, Problem
from sweeper.core.head import TargetFacts, TargetKind
from sweeper.core.objective import Objective
from sweeper.spec.study import TaskSpec
from sweeper.tasks.base import Examples, Metric
from sweeper.tasks.images import ImageInputs
from sweeper.tasks.text import TextInputs

OF_IMAGES = ("random_crop", "horizontal_flip", "mixup_alpha", "cutmix_alpha")
OF_TEXT = ("token_dropout", "token_deletion")
OF_CLASSES = ("label_smoothing", "focal_gamma", "balance")


class Labelled(ABC):
    """A base for tasks that put a head on a text or image encoder; they differ in head, loss and metrics.

    Parameters
    ----------
    spec:
        The task section of the study.
    facts:
        What is known of the targets; a plain sequence is the classes.

    Raises
    ------
    InputError
        When the metric is unknown, or a setting does not apply.
    """

    type: ClassVar[str]
    input_kind: ClassVar[str | None] = None
    """``text`` or ``image``; None: as ``columns.kind`` says, or as the data look."""
    target_kind: ClassVar[TargetKind] = "class"
    default_metric: ClassVar[str] = "accuracy"

    def __init__(self, spec: TaskSpec, facts: TargetFacts | Sequence[str]) -> None:
        self._spec = spec
        self._facts = facts if isinstance(facts, TargetFacts) else TargetFacts(classes=tuple(facts))
        self._is_image = input_kind(spec, self.input_kind) == "image"
        self._inputs = ImageInputs(spec.image_size) if self._is_image else TextInputs(spec.max_length)
        name = spec.metric.name if spec.metric else self.default_metric
        problems = []
        if name not in self.metrics:
            rule = f"must be one of {', '.join(self.metrics)}"
            problems.append(Problem("task.metric.name", rule, name, "choose one of them"))
        if spec.balance != "none" and "balance" in self.not_applicable:
            problems.append(Problem("task.balance", self.not_applicable["balance"], spec.balance, "remove it"))
        if spec.threshold is not None and (self.target_kind != "class" or len(self._facts.classes) != 2):
            rule = "a threshold needs a task of two classes"
            problems.append(Problem("task.threshold", rule, str(spec.threshold), "remove it"))
        if spec.costs is not None and (self.target_kind != "class" or len(self._facts.classes) != 2):
            rule = "costs of mistakes need a task of two classes"
            problems.append(Problem("task.costs", rule, str(spec.costs), "remove them"))
        if spec.max_new_tokens is not None and self.target_kind != "text":
            rule = "only text generation writes answers"
            problems.append(Problem("task.max_new_tokens", rule, str(spec.max_new_tokens), "remove it"))
        if problems:
            raise InputError(problems)
        goal = (spec.metric.goal if spec.metric else None) or self.metrics[name].goal
        self.objective = Objective(name, goal)

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, Metric]:
        """All metrics by name."""

    @property
    def not_applicable(self) -> Mapping[str, str]:
        """Augmentations of the other kind of input, and remedies that need classes."""
        return not_applicable("image" if self._is_image else "text", self.target_kind)

    def cache_key(self) -> str:
        """What the encoding depends on."""
        return self._inputs.cache_key()

    def encode(self, table: pa.Table, preprocessor: Any) -> pa.Table:
        """Tokenise or decode a raw split."""
        return self._inputs.encode(table, preprocessor)

    def open(self, encoded: pa.Table, preprocessor: Any) -> Examples:
        """Wrap an encoded split for random access."""
        num_labels = len(self._facts.classes) if self.target_kind == "labels" else 0
        return self._inputs.open(encoded, preprocessor, num_labels)

    def choose_threshold(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float | None:  # noqa: ARG002
        """Return None: decisions need no threshold."""
        return None


def not_applicable(kind: str, target: TargetKind) -> dict[str, str]:
    """Return the hyperparameters that do nothing for a kind of inputs and targets, each with the reason."""
    other, what = (OF_TEXT, "text") if kind == "image" else (OF_IMAGES, "images")
    found = dict.fromkeys(other, f"applies to {what} only")
    if target == "text":
        found |= dict.fromkeys(("focal_gamma", "balance"), "applies to classes only")
        found |= {"token_deletion": "its tokens are what is to be learnt"}
    if target in ("number", "boxes"):
        found |= dict.fromkeys((*OF_CLASSES, "mixup_alpha", "cutmix_alpha"), "applies to classes only")
    if target == "labels":
        found["balance"] = "applies to one label an example only"
    return found


def input_kind(spec: TaskSpec, fixed: str | None) -> str:
    """Return ``text`` or ``image``: the task's own kind, else ``columns.kind``, else images for a folder of them."""
    if fixed is not None:
        return fixed
    if spec.columns.kind is not None:
        return spec.columns.kind
    looks_like_images = spec.columns.input in ("image", "img") or Path(spec.data.train).is_dir()
    return "image" if looks_like_images else "text"
