"""Text classification: one text, or a pair, to one of K labels."""

from __future__ import annotations

from typing import ClassVar

from sweeper.tasks.classification import Classification


class TextClassification(Classification):
    """See `Classification` and `sweeper.tasks.text.TextInputs`."""

    type: ClassVar[str] = "text-classification"
    input_kind: ClassVar[str | None] = "text"
