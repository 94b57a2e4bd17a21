"""Image classification: one image to one of K labels."""

from __future__ import annotations

from typing import ClassVar

from sweeper.tasks.classification import Classification


class ImageClassification(Classification):
    """See `Classification` and `sweeper.tasks.images.ImageInputs`."""

    type: ClassVar[str] = "image-classification"
    input_kind: ClassVar[str | None] = "image"
