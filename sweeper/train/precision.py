"""Which precision is fast on a device: measured, not guessed from its name."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

LEAST_SPEEDUP = 1.2  # below it, bf16's coarser sums are not worth having
# Of the small end of what a device is used for: the large end gains more. On a GPU a smaller block measures kernel
# launches alone, where bf16 loses although whole models gain (benchmarks/RESULTS.md).
_SHAPES = {"cpu": (4, 32, 256, 4), "cuda": (32, 128, 768, 12)}  # batch, length, width, heads
_ROUNDS = 3
_HOPELESS = 3.0  # a pass this many times slower is one of emulation: it is not repeated


def bf16_speedup(device: str) -> float:
    """Return seconds in fp32 over seconds in bf16 autocast, for a forward and backward pass of a transformer block.

    Matrix products, attention, norms and activations together, a tenth of a second of work. The global random state
    is left as it was.
    """
    place = torch.device(device)
    batch, length, width, heads = _SHAPES.get(place.type, _SHAPES["cpu"])
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        block = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True).to(place)
        inputs = torch.randn(batch, length, width, device=place)

    def seconds(bf16: bool) -> float:
        began = time.perf_counter()
        with torch.autocast(place.type, torch.bfloat16, enabled=bf16):
            loss = block(inputs).float().square().mean()
        loss.backward()
        block.zero_grad(set_to_none=True)
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return time.perf_counter() - began

    seconds(False)  # kernels and buffers are made the first time
    plain = min(seconds(False) for _ in range(_ROUNDS))
    seconds(True)
    fast = seconds(True)
    if fast < _HOPELESS * plain:
        fast = min(fast, *(seconds(True) for _ in range(_ROUNDS - 1)))
    return plain / fast


def settled_precision(asked: str, device: str, file: Path, measure: Callable[[str], float] = bf16_speedup) -> str:
    """Return ``fp32`` or ``bf16``: what was asked, or for ``auto`` what is fast.

    Parameters
    ----------
    file:
        Keeps the decision for all who share it. Of several processes that measure at the same time, the first decides.
    measure:
        Returns how many times bf16 is faster on a device.
    """
    if asked != "auto":
        return asked
    if not file.exists():
        speedup = measure(device)
        chosen = "bf16" if speedup >= LEAST_SPEEDUP else "fp32"
        file.parent.mkdir(parents=True, exist_ok=True)
        mine = file.with_name(f".{file.name}.{os.getpid()}")
        mine.write_text(json.dumps({"chosen": chosen, "bf16_speedup": round(speedup, 3), "device": device}) + "\n")
        with suppress(FileExistsError):
            os.link(mine, file)  # whole or not at all, and never over another's
        mine.unlink()
    return str(json.loads(file.read_text())["chosen"])
