"""What a task asks of a model: the one fact that both rooms share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """The head a model needs for a task: what ``models`` builds and ``from_pretrained`` later loads.

    ``auto_class`` is a transformers Auto class name such as ``AutoModelForSequenceClassification``.
    """

    auto_class: str
    labels: tuple[str, ...] = ()
    problem_type: str | None = None
