"""Pretrains three small vision models for the quickstart, in seconds on one core.

    python examples/quickstart/pretrain.py

The study fine-tunes on the handwritten digits 5 to 9 with few labels. The models are pretrained on the digits 0 to 4
only, so no image of the study's data is ever seen here: each image is shifted, scaled, sheared and turned by a random
multiple of 90 degrees, and the model learns which digit it is and how it was turned, 5 x 4 classes at once. Knowing
only the digit transfers badly (a network may throw away all else); the rotation asks for the shapes of strokes.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from sweeper.testing.pretraining import begin, descend

SIDE = 16  # pixels: the digits have 8 x 8
MEAN, DEVIATION = 0.3, 0.35  # of the digits' pixels, in 0..1
NUM_CLASSES = 20  # five digits x four rotations


def make_models() -> dict[str, PreTrainedModel]:
    """Build the three families from their configurations, small enough for one core."""
    common = {"num_labels": NUM_CLASSES}
    return {
        "resnet": ResNetForImageClassification(
            ResNetConfig(embedding_size=24, hidden_sizes=[24, 48], depths=[2, 2], layer_type="basic", **common)
        ),
        "vit": ViTForImageClassification(
            ViTConfig(
                hidden_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=128,
                image_size=SIDE,
                patch_size=4,
                **common,
            )
        ),
        "convnext": ConvNextForImageClassification(
            ConvNextConfig(patch_size=2, num_stages=2, hidden_sizes=[32, 64], depths=[2, 2], **common)
        ),
    }


def upright(images: np.ndarray) -> torch.Tensor:
    """Return (N, 64) digit pixels as the processor would: (N, 3, 16, 16), normalised."""
    pixels = torch.as_tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    pixels = torch.nn.functional.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return ((pixels - MEAN) / DEVIATION).expand(-1, 3, -1, -1)


def disturbed(pixels: torch.Tensor, turns: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Shift, scale and shear each image a little, then turn it by its number of quarter turns."""
    count = len(pixels)
    noise = torch.rand(count, 2, 3, generator=rng) * 2 - 1
    angle = turns * (torch.pi / 2)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).reshape(-1, 2, 2)
    linear = turn @ (torch.eye(2) + 0.15 * noise[:, :, :2])
    affine = torch.cat([linear, 0.15 * noise[:, :, 2:]], -1)
    grid = torch.nn.functional.affine_grid(affine, list(pixels.shape), align_corners=False)
    return torch.nn.functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def pretrain(model: PreTrainedModel, steps: int, seed: int) -> float:
    """Train in place and return the share of the last batches that was right."""
    images, labels = load_digits(return_X_y=True)
    mine = labels < 5
    pixels, digits = upright(images[mine]), torch.as_tensor(labels[mine])
    rng = torch.Generator().manual_seed(seed)
    right = []

    def batch_loss() -> torch.Tensor:
        rows = torch.randint(len(pixels), (128,), generator=rng)
        turns = torch.randint(4, (128,), generator=rng)
        targets = digits[rows] * 4 + turns
        logits = model(pixel_values=disturbed(pixels[rows], turns, rng)).logits
        right.append((logits.argmax(-1) == targets).float().mean().item())
        return torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)

    descend(model, batch_loss, steps, learning_rate=2e-3, weight_decay=0.05, max_grad_norm=math.inf)
    return float(np.mean(right[-20:]))


def main() -> None:
    """Pretrain and save all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "checkpoints")
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    begin()
    processor = ViTImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3
    )
    for name, model in make_models().items():
        began = time.perf_counter()
        accuracy = pretrain(model, arguments.steps, seed=0)
        model.base_model.save_pretrained(arguments.output / name)  # the body: the study brings its own head
        processor.save_pretrained(arguments.output / name)
        count = sum(parameter.numel() for parameter in model.base_model.parameters())
        print(f"{name}: {count:,} parameters, {accuracy:.3f} right, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
