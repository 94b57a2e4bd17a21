"""Labelled boxes as arrays, and how they follow an image that is resized, padded, shifted or mirrored.

One layout serves targets and predictions: (N, M, 6 or 8), a row of zeros and ones a box, M the most boxes of an image.
Columns: class (-1: no box), score (of a target 1, or 0 where neither loss nor metric count it), corners x0, y0, x1, y1
in pixels of the original image; of targets also the frame, width and height in the same pixels: the part of the plane
that the model's input shows. An input that was stretched shows the image; one that was padded shows a square.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sweeper.tasks.base import Batch

if TYPE_CHECKING:
    import torch

CLASS, SCORE, CORNERS, FRAME = 0, 1, slice(2, 6), slice(6, 8)
NO_BOX = -1
MIN_VISIBLE = 0.25  # share of a box that must still be in the frame; what is left of others is no object to learn


def target_boxes(labels: list[list[dict[str, Any]]], frames: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return targets (N, M, 8), M at least 1, from each image's objects and frames (N, 2)."""
    most = max(1, max((len(found) for found in labels), default=0))
    targets = np.zeros((len(labels), most, 8), dtype=np.float32)
    targets[:, :, CLASS] = NO_BOX
    targets[:, :, FRAME] = frames[:, None]
    for row, found in enumerate(labels):
        for at, item in enumerate(found):
            targets[row, at, CLASS] = item["label"]
            targets[row, at, SCORE] = not item["ignored"]
            targets[row, at, CORNERS] = item["box"]
    return targets


def frames_of(table: pa.Table) -> NDArray[np.float64]:
    """Return the frames (N, 2) that `encode` noted."""
    return np.stack([table.column(name).to_numpy() for name in ("frame_width", "frame_height")], axis=1)


def follow(batch: Batch, steps: NDArray[np.int64], flips: NDArray[np.bool_]) -> Batch:
    """Move a batch's boxes, and the mask of its padding, the way its images were moved.

    Parameters
    ----------
    steps:
        (B, 2) pixels of the input by which the window on each image went down and to the right.
    flips:
        (B,) whether the window was mirrored afterwards.
    """
    import torch

    height, width = batch.inputs["pixel_values"].shape[-2:]
    targets = batch.targets.clone()
    frame = targets[:, :, FRAME]
    moved = (
        torch.as_tensor(steps[:, ::-1].copy(), dtype=targets.dtype)[:, None] * frame / frame.new_tensor([width, height])
    )
    corners = targets[:, :, CORNERS] - torch.cat([moved, moved], dim=-1)
    mirrored = torch.stack(
        [frame[..., 0] - corners[..., 2], corners[..., 1], frame[..., 0] - corners[..., 0], corners[..., 3]], dim=-1
    )
    corners = torch.where(torch.from_numpy(flips)[:, None, None], mirrored, corners)
    inside = torch.minimum(corners.clamp_min(0), torch.cat([frame, frame], dim=-1))
    gone = area(inside) < MIN_VISIBLE * area(corners)
    targets[:, :, CORNERS] = inside
    targets[:, :, CLASS] = torch.where(gone, NO_BOX, targets[:, :, CLASS])
    return replace(batch, inputs={**batch.inputs, "labels": targets}, targets=targets)


def area(corners: torch.Tensor) -> torch.Tensor:
    """Return the areas (...) of boxes (..., 4), 0 where a side is negative."""
    return (corners[..., 2] - corners[..., 0]).clamp_min(0) * (corners[..., 3] - corners[..., 1]).clamp_min(0)


def to_centres(corners: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
    """Return boxes (..., 4) as centre and size in shares of the frame (..., 2): what detectors learn."""
    import torch

    centre = (corners[..., :2] + corners[..., 2:]) / 2
    return torch.cat([centre / frame, (corners[..., 2:] - corners[..., :2]) / frame], dim=-1)


def to_corners(centres: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
    """Return the inverse of `to_centres`."""
    import torch

    middle, size = centres[..., :2] * frame, centres[..., 2:] * frame
    return torch.cat([middle - size / 2, middle + size / 2], dim=-1)
