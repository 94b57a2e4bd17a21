"""Pretrains two small detectors on scenes of the digits 0 to 4, in about two minutes on one core.

    python examples/detection/pretrain.py

A YOLOS (a transformer over patches) and a DETR (a ResNet below encoder and decoder). The study detects the digits 5 to
9: no image of its data is seen here. What finds boxes is kept by the study, class layers are made anew. Detectors that
learn through a matching need long training; these few hundred steps are enough to find where something stands.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from scenes import SIDE, compose, digits
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    PreTrainedModel,
    ResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from sweeper.testing.pretraining import begin, descend

MEAN, DEVIATION = 0.15, 0.25  # of the scenes' pixels, in 0..1
CLASSES = range(5)
BATCH = 16


def make_models() -> dict[str, PreTrainedModel]:
    """Build both from their configurations, small enough for one core."""
    common = {"num_labels": len(CLASSES)}
    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic", out_features=["stage3"]
    )
    return {
        "yolos": YolosForObjectDetection(
            YolosConfig(
                hidden_size=64,
                num_hidden_layers=4,
                num_attention_heads=4,
                intermediate_size=128,
                image_size=[SIDE, SIDE],
                patch_size=8,
                num_detection_tokens=12,
                **common,
            )
        ),
        "detr": DetrForObjectDetection(
            DetrConfig(
                backbone_config=backbone,
                d_model=64,
                encoder_layers=2,
                decoder_layers=3,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=128,
                decoder_ffn_dim=128,
                num_queries=12,
                auxiliary_loss=True,
                **common,
            )
        ),
    }


def make_batch(rng: np.random.Generator) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Return fresh scenes (B, 3, 64, 64), normalised, and their labels as transformers takes them."""
    images, labels = digits(CLASSES)
    pixels, targets = [], []
    for _ in range(BATCH):
        scene, objects = compose(images, labels, rng)
        pixels.append((scene / 255 - MEAN) / DEVIATION)
        found = torch.tensor(objects, dtype=torch.float32) / SIDE
        centres = torch.cat([(found[:, 1:3] + found[:, 3:]) / 2, found[:, 3:] - found[:, 1:3]], dim=1)
        targets.append({"class_labels": torch.tensor([digit for digit, *_ in objects]), "boxes": centres})
    stacked = torch.as_tensor(np.stack(pixels), dtype=torch.float32)
    return stacked[:, None].expand(-1, 3, -1, -1), targets


def pretrain(model: PreTrainedModel, steps: int, seed: int) -> float:
    """Train in place and return the mean loss of the last steps."""
    rng = np.random.default_rng(seed)

    def batch_loss() -> torch.Tensor:
        pixels, targets = make_batch(rng)
        return model(pixel_values=pixels, labels=targets).loss

    return descend(model, batch_loss, steps, learning_rate=1e-3, weight_decay=1e-4, max_grad_norm=0.5)


def main() -> None:
    """Pretrain and save both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "checkpoints")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", choices=["yolos", "detr"], help="pretrain one of them")
    arguments = parser.parse_args()
    begin()
    options = {
        "image_mean": [MEAN] * 3,
        "image_std": [DEVIATION] * 3,
        "size": {"shortest_edge": SIDE, "longest_edge": SIDE},
    }
    processors = {"yolos": YolosImageProcessor(**options), "detr": DetrImageProcessor(**options)}
    for name, model in make_models().items():
        if arguments.only not in (None, name):
            continue
        began = time.perf_counter()
        loss = pretrain(model, arguments.steps, seed=0)
        model.save_pretrained(arguments.output / name)
        processors[name].save_pretrained(arguments.output / name)
        count = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name}: {count:,} parameters, loss {loss:.3f}, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
