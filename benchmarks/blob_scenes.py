"""Scenes of ellipses in three sizes on a noisy ground, endless and free, on which small detectors are pretrained.

Colours, outlines and counts are drawn anew for every scene, so what is learnt is to find and to frame round things and
to tell their size, and nothing of any data set.
"""

from __future__ import annotations

import numpy as np
import torch
import transformers as hf
from numpy.typing import NDArray

from sweeper.testing.pretraining import descend

SIDE = 96
RADII = ((2.0, 4.0), (5.0, 9.0), (10.0, 16.0))  # of the three classes, in pixels
MOST = (4, 12, 3)  # of each class in a scene
MEAN, DEVIATION = 0.5, 0.25
BATCH = 8

Scene = tuple[NDArray[np.float32], list[tuple[int, float, float, float, float]]]
"""Pixels (3, 96, 96) in 0..1, and objects: class and corners x0, y0, x1, y1 in pixels."""


def compose(rng: np.random.Generator) -> Scene:
    """Draw one scene; objects may overlap by a little."""
    ground = rng.uniform(0.5, 1.0, (3, 1, 1)) + rng.normal(0, 0.03, (3, SIDE, SIDE))
    colours = [np.clip(ground.mean(axis=(1, 2)) - rng.uniform(0.1, 0.6, 3), 0, 1) for _ in RADII]
    rim = rng.uniform(0, 0.3)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    taken = np.zeros((SIDE, SIDE), dtype=bool)
    objects = []
    for size in (2, 1, 0):
        for _ in range(rng.integers(0, MOST[size] + 1)):
            a, b = rng.uniform(*RADII[size]) * rng.uniform(0.85, 1.15, 2)
            cx, cy = rng.uniform(0, SIDE, 2)
            away = ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2
            inside = away <= 1
            if inside.sum() < 4 or (taken & inside).sum() > 0.2 * inside.sum():
                continue
            taken |= inside
            shade = colours[size][:, None] + rng.normal(0, 0.04) + rim * (0.5 - away[inside])
            ground[:, inside] = 0.2 * ground[:, inside] + 0.8 * shade
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            objects.append((size, columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return np.clip(ground, 0, 1).astype(np.float32), objects


def make_batch(rng: np.random.Generator) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Return fresh scenes (B, 3, 96, 96), normalised, and their labels as transformers takes them."""
    pixels, targets = [], []
    for _ in range(BATCH):
        scene, objects = compose(rng)
        pixels.append((scene - MEAN) / DEVIATION)
        found = torch.tensor([corners for _, *corners in objects], dtype=torch.float32).reshape(-1, 4) / SIDE
        centres = torch.cat([(found[:, :2] + found[:, 2:]) / 2, found[:, 2:] - found[:, :2]], dim=1)
        targets.append(
            {"class_labels": torch.tensor([size for size, *_ in objects], dtype=torch.long), "boxes": centres}
        )
    return torch.as_tensor(np.stack(pixels)), targets


def make_models() -> dict[str, hf.PreTrainedModel]:
    """Build an RT-DETR and a D-FINE of some hundred thousand parameters."""
    three = {"out_features": ["stage2", "stage3", "stage4"]}
    body = {
        "d_model": 64,
        "encoder_hidden_dim": 64,
        "encoder_layers": 1,
        "encoder_ffn_dim": 128,
        "encoder_attention_heads": 4,
        "decoder_layers": 2,
        "decoder_ffn_dim": 128,
        "decoder_attention_heads": 4,
        "decoder_in_channels": [64, 64, 64],
        "encoder_in_channels": [32, 48, 64],
        "num_queries": 50,
        "num_denoising": 50,
        "num_labels": len(RADII),
    }
    residual = hf.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic", **three
    )
    graph = hf.HGNetV2Config(
        stem_channels=[3, 8, 16],
        stage_in_channels=[16, 16, 32, 48],
        stage_mid_channels=[8, 16, 24, 32],
        stage_out_channels=[16, 32, 48, 64],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[2, 2, 2, 2],
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        embedding_size=16,
        **three,
    )
    return {
        "rt_detr": hf.RTDetrForObjectDetection(hf.RTDetrConfig(backbone_config=residual, **body)),
        "d_fine": hf.DFineForObjectDetection(hf.DFineConfig(backbone_config=graph, **body)),
    }


def pretrain(model: hf.PreTrainedModel, steps: int) -> float:
    """Train in place and return the mean loss of the last steps."""
    rng = np.random.default_rng(0)

    def batch_loss() -> torch.Tensor:
        pixels, targets = make_batch(rng)
        return model(pixel_values=pixels, labels=targets).loss

    return descend(model, batch_loss, steps, learning_rate=2e-3, weight_decay=1e-4)


def processor() -> hf.RTDetrImageProcessor:
    """Return what brings images to what the models were pretrained on."""
    return hf.RTDetrImageProcessor(
        size={"height": SIDE, "width": SIDE},
        do_normalize=True,
        image_mean=[MEAN] * 3,
        image_std=[DEVIATION] * 3,
    )
