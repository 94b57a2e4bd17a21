"""Augmentation of training batches, in plain tensors: everything is drawn from (trial seed, epoch, batch) alone.

The draws are made for the whole global batch and then shared out, so neither the number of workers nor of
micro-batches changes an example's augmentation, and a resumed run repeats it. Images: a random crop is a shift of the
image with its edge repeated (He et al. 2016 pad by zeros); mixup (Zhang et al. 2018, arXiv 1710.09412) and cutmix (Yun
et al. 2019, arXiv 1905.04899) mix each example with one of its own batch. Where both are on, each batch takes one of
them. Text: deleted tokens are taken out and the rest moves up (Wei and Zou 2019, arXiv 1901.11196, of words), dropped
tokens stay in their place and are hidden from attention; neither is ever the first or the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from sweeper.core.errors import InfeasibleError
from sweeper.tasks.base import Batch
from sweeper.train.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to training inputs; all zero: nothing."""

    random_crop: float = 0.0
    horizontal_flip: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    token_dropout: float = 0.0
    token_deletion: float = 0.0

    @classmethod
    def of(cls, settings: Settings) -> Augmentation:
        """Take a trial's settings."""
        return cls(**{name: getattr(settings, name) for name in cls.__dataclass_fields__})

    @property
    def mixes(self) -> bool:
        """Whether examples are mixed with each other."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    @property
    def is_off(self) -> bool:
        """Whether inputs stay as they are."""
        return not any(vars(self).values())

    def draw(self, count: int, seed: int, epoch: int, index: int) -> Draws:
        """Draw what happens to the ``count`` examples of the epoch's batch ``index``."""
        rng = np.random.default_rng([seed, epoch, index])
        seeds = rng.integers(0, 2**63, count)
        shifts = rng.uniform(-self.random_crop, self.random_crop, (count, 2))
        flips = rng.random(count) < self.horizontal_flip
        partners = rng.permutation(count)
        cut = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or bool(rng.random() < 0.5))
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        kept = float(rng.beta(alpha, alpha)) if alpha > 0 else 1.0
        return Draws(
            seeds=seeds, shifts=shifts, flips=flips, partners=partners, kept=kept, cut=cut, centre=rng.random(2)
        )

    def apply(self, batch: Batch, draws: Draws, at: NDArray[np.int64]) -> Batch:
        """Crop, flip, delete and drop; ``at`` are the examples' positions in the global batch.

        Raises
        ------
        InfeasibleError
            When tokens shall be deleted from rows that do not say what they are filled up with.
        """
        inputs = dict(batch.inputs)
        steps, flips = None, draws.flips[at]
        if "pixel_values" in inputs and (self.random_crop > 0 or self.horizontal_flip > 0):
            steps = np.rint(draws.shifts[at] * inputs["pixel_values"].shape[-2:]).astype(np.int64)
            inputs["pixel_values"] = moved(inputs["pixel_values"], steps, flips)
            if "pixel_mask" in inputs:
                inputs["pixel_mask"] = moved(inputs["pixel_mask"][:, None].float(), steps, flips)[:, 0].long()
        if "attention_mask" in inputs and self.token_deletion > 0:
            if batch.fill is None:
                raise InfeasibleError("token_deletion: the task's batches do not say what fills up a shorter row")
            inputs |= _shortened(inputs, batch.fill, self.token_deletion, draws.seeds[at])
        if "attention_mask" in inputs and self.token_dropout > 0:
            inputs["attention_mask"] = _hidden(inputs["attention_mask"], self.token_dropout, draws.seeds[at])
        changed = replace(batch, inputs=inputs)
        return changed if steps is None or batch.follow is None else batch.follow(changed, steps, flips)

    def mix(self, batch: Batch, partners: Batch, draws: Draws) -> tuple[Batch, float]:
        """Mix images with their partners'; return them with the share of the loss that is the first one's."""
        first, second = batch.inputs["pixel_values"], partners.inputs["pixel_values"]
        if not draws.cut:
            mixed, share = draws.kept * first + (1 - draws.kept) * second, draws.kept
        else:
            height, width = first.shape[-2:]
            (top, bottom), (left, right) = (
                _stretch(side, draws.kept, centre) for side, centre in zip((height, width), draws.centre, strict=True)
            )
            mixed = first.clone()
            mixed[..., top:bottom, left:right] = second[..., top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (height * width)
        return replace(batch, inputs={**batch.inputs, "pixel_values": mixed}), share


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What chance decided for one global batch of N examples.

    ``shifts`` (N, 2) as shares of the side; ``partners`` (N,) positions; ``kept`` the share of the first of two mixed
    images; ``cut`` whether a box is pasted instead of mixing all pixels; ``centre`` of the box, as shares.
    """

    seeds: NDArray[np.int64]
    shifts: NDArray[np.float64]
    flips: NDArray[np.bool_]
    partners: NDArray[np.int64]
    kept: float
    cut: bool
    centre: NDArray[np.float64]


def moved(pixels: torch.Tensor, steps: NDArray[np.int64], flips: NDArray[np.bool_]) -> torch.Tensor:
    """Shift and mirror images (B, C, H, W) by whole pixels; what comes in repeats the edge.

    ``steps`` (B, 2) is how far the window on each image goes down and to the right, ``flips`` (B,) mirrors it then.
    """
    height, width = pixels.shape[-2:]
    most = int(np.abs(steps).max(initial=0))
    padded = functional.pad(pixels, (most,) * 4, mode="replicate") if most else pixels
    found = []
    for image, (down, right), flip in zip(padded, steps.tolist(), flips.tolist(), strict=True):
        part = image[:, most + down : most + down + height, most + right : most + right + width]
        found.append(part.flip(-1) if flip else part)
    return torch.stack(found)


def _hidden(mask: torch.Tensor, share: float, seeds: NDArray[np.int64]) -> torch.Tensor:
    """Hide a share of each example's tokens (B, L) from attention, its first and last one excepted."""
    hidden: Any = mask.clone()
    for row, seed in enumerate(seeds):
        length = int(mask[row].sum())
        hidden[row, :length][_inner(length, share, [int(seed)])] = 0
    return hidden  # type: ignore[no-any-return]


def _shortened(
    inputs: Mapping[str, torch.Tensor], fill: Mapping[str, int], share: float, seeds: NDArray[np.int64]
) -> dict[str, torch.Tensor]:
    """Delete a share of each example's tokens, its first and last one excepted, from all inputs (B, L) of a batch."""
    ends = {"attention_mask": 0, **fill}
    found: dict[str, Any] = {name: torch.full_like(inputs[name], end) for name, end in ends.items()}
    for row, seed in enumerate(seeds):
        length = int(inputs["attention_mask"][row].sum())
        kept = ~_inner(length, share, [int(seed), 1])
        for name, values in found.items():
            values[row, : int(kept.sum())] = inputs[name][row, :length][kept]
    return found


def _inner(length: int, share: float, seed: list[int]) -> torch.Tensor:
    """Draw a share of the tokens between the first and the last one, as a mask (length,)."""
    drawn = np.random.default_rng(seed).random(length) < share
    drawn[[0, -1]] = False
    return torch.from_numpy(drawn)


def _stretch(side: int, kept: float, centre: float) -> tuple[int, int]:
    """Return begin and end of the pasted box along one side."""
    half = side * (1 - kept) ** 0.5 / 2
    return max(0, round(centre * side - half)), min(side, round(centre * side + half))
