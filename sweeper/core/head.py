"""What data, tasks and models must agree on: the facts of the targets, and the head they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TargetKind = Literal["class", "labels", "number", "text", "boxes"]


@dataclass(frozen=True, kw_only=True)
class TargetFacts:
    """What is known of the targets, learnt on the train split alone.

    Parameters
    ----------
    kind:
        ``class``: one label; ``labels``: any number of labels; ``number``; ``text``; ``boxes``: labelled boxes.
    classes:
        Labels in the order of their index; empty for numbers and text.
    mean, scale:
        Mean and standard deviation of numbers; 0 and 1 for all others.
    """

    kind: TargetKind = "class"
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """The head a model needs for a task: what ``models`` builds and ``from_pretrained`` later loads.

    ``auto_class`` is a transformers Auto class name such as ``AutoModelForSequenceClassification``; without ``labels``
    the checkpoint's own head stays. ``config`` is kept in the model's configuration for those who load it later, and
    ``image_size`` in its image processor; None leaves the processor's own.
    """

    auto_class: str
    labels: tuple[str, ...] = ()
    problem_type: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
