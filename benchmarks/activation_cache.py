"""Epochs with stored states of frozen blocks against epochs that run them, by architecture and unfreezing schedule.

    python benchmarks/activation_cache.py --json OUT.json
    python benchmarks/activation_cache.py --architectures resnet --schedules last_blocks,gradual --examples 48

Models of about 20 MB built from their configurations, on one core, random examples: only time and equality matter
here. A first trial fills the store; then a trial with and one without it run in alternation. ``speedup`` is the ratio
of the smallest processor seconds of training and validation: other work on the machine matters less to them. With
``--device cuda`` clock time counts; ``--width 768 --blocks 12`` makes encoder and ViT as large as the base models.
``limit`` is the arithmetic one for blocks that all cost alike: a trained block costs a forward and a backward pass of
twice its price, a frozen one a forward pass, evaluation a forward pass of all that is not stored.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers as hf
from machine import facts
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from sweeper.core.trial import TrialSpec
from sweeper.models.load import load
from sweeper.spec.study import DataSpec, ModelSpec, TaskSpec
from sweeper.tasks.registry import make_task
from sweeper.train.activation_cache import ActivationStore
from sweeper.train.loop import TrainData, train
from sweeper.train.options import TrainOptions
from sweeper.train.settings import Settings
from sweeper.train.unfreezing import stages

EPOCHS = 4
WIDTH, BLOCKS = 256, 6  # of encoder and ViT
PIXELS = 64
WORDS = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(998))]
SCHEDULES: dict[str, dict[str, Any]] = {
    "full": {},
    "head_only": {},
    "last_blocks": {"num_unfrozen_blocks": 1},
    "gradual": {"epochs_per_stage": 1},
    "head_then_full": {"head_fraction": 0.5},
}


def bodies(width: int = WIDTH, blocks: int = BLOCKS) -> dict[str, Any]:
    """Build a body for each architecture."""
    torch.manual_seed(0)
    transformer = {
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
    }
    encoder = hf.BertConfig(vocab_size=len(WORDS), **transformer)
    vit = hf.ViTConfig(image_size=PIXELS, patch_size=8, **transformer)
    resnet = hf.ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[2, 2, 2, 2], layer_type="basic"
    )
    return {"encoder": hf.BertModel(encoder), "vit": hf.ViTModel(vit), "resnet": hf.ResNetModel(resnet)}


def table(kind: str, count: int) -> pa.Table:
    """Return random examples."""
    rng = np.random.default_rng(count)
    columns: dict[str, Any] = {
        "example_id": [str(i) for i in range(count)],
        "label": pa.array(rng.integers(0, 4, count), pa.int32()),
    }
    if kind == "text":
        return pa.table(
            columns | {"text": [" ".join(rng.choice(WORDS[2:], rng.integers(20, 64))) for _ in range(count)]}
        )
    cells = []
    for _ in range(count):
        sink = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (PIXELS, PIXELS, 3), dtype=np.uint8)).save(sink, "PNG")
        cells.append(sink.getvalue())
    return pa.table(columns | {"image": pa.array(cells, pa.binary())})


def prepared(body: Any, folder: Path, num_examples: int) -> tuple[Any, Any, TrainData]:
    """Save a body, load it as a study would, and open its examples; half as many for validation as for training."""
    body.save_pretrained(folder)
    kind = "image" if body.main_input_name == "pixel_values" else "text"
    if kind == "image":
        hf.ViTImageProcessor(size={"height": PIXELS, "width": PIXELS}).save_pretrained(folder)
    else:
        backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
        backend.pre_tokenizer = Whitespace()
        tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
        tokenizer.save_pretrained(folder)
    task = make_task(TaskSpec(type=f"{kind}-classification", data=DataSpec(train="x")), list("abcd"))
    model = load(ModelSpec(name="m", checkpoint=str(folder)), task.head)
    opened = [
        task.open(task.encode(table(kind, count), model.preprocessor), model.preprocessor)
        for count in (num_examples, num_examples // 2)
    ]
    return task, model, TrainData(train=opened[0], validation=opened[1], key="random")


def limit(params: dict[str, Any], num_blocks: int) -> float | None:
    """Return the arithmetic bound on the speed-up; None where nothing but a head is left."""
    evaluation = 0.5  # examples evaluated for each one trained
    plain = stored = 0.0
    found = stages(Settings.from_params(params), num_blocks, EPOCHS)
    for epoch in range(EPOCHS):
        stage = [stage for stage in found if stage.from_epoch <= epoch][-1]
        trained = num_blocks + 1 - max(1, stage.lowest)
        frozen_kept = num_blocks - trained
        plain += num_blocks + 2 * trained + evaluation * num_blocks
        stored += num_blocks - frozen_kept + 2 * trained + evaluation * (num_blocks - frozen_kept)
    return plain / stored if stored else None


def measure(
    task: Any, model: Any, data: TrainData, store: ActivationStore, name: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Time one schedule with and without the store."""
    clock = time.perf_counter if options.device == "cuda" else time.process_time
    params = {"learning_rate": 1e-3, "batch_size": 32, "unfreezing": name, **SCHEDULES[name]}
    trial = TrialSpec(trial_id="t", number=0, model="m", params=params, seed=0, max_epochs=EPOCHS)

    def seconds(kept: ActivationStore | None) -> tuple[float, list[float]]:
        run = train(trial, task, model, data, TrainOptions(device=options.device), None, kept)
        began = clock()
        losses = [measurement.train_loss for measurement in run]
        return clock() - began, losses

    first, _ = seconds(store)
    arms = [(seconds(store), seconds(None)) for _ in range(options.rounds)]
    losses = np.asarray(arms[0][0][1]), np.asarray(arms[0][1][1])
    stored, plain = (min(arm[i][0] for arm in arms) for i in (0, 1))
    return {
        "speedup": plain / stored,
        "limit": limit(params, model.layout.num_blocks),
        "seconds_plain": plain,
        "seconds_stored": stored,
        "seconds_first": first,
        "max_relative_loss_difference": float(np.max(np.abs(losses[0] - losses[1]) / losses[1])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--examples", type=int, default=192, help="for training; half as many for validation")
    parser.add_argument("--width", type=int, default=WIDTH, help="of encoder and ViT, a multiple of 64")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="of encoder and ViT")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--architectures", default="encoder,vit,resnet")
    parser.add_argument("--schedules", default=",".join(SCHEDULES))
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": facts(), "architectures": {}}
    with tempfile.TemporaryDirectory() as folder:
        chosen = arguments.schedules.split(",")
        for architecture in arguments.architectures.split(","):
            body = bodies(arguments.width, arguments.blocks)[architecture]
            store = ActivationStore(folder=Path(folder) / f"{architecture}-states", limit_bytes=10**10)
            task, model, data = prepared(body, Path(folder) / architecture, arguments.examples)
            megabytes = sum(p.numel() * p.element_size() for p in model.module.parameters()) / 1e6
            found = {name: measure(task, model, data, store, name, arguments) for name in chosen}
            files = list(store.folder.glob("*.npy"))
            per_example = (
                sum(path.stat().st_size for path in files) / max(1, len(files) / 2) / (1.5 * arguments.examples)
            )
            result["architectures"][architecture] = {
                "megabytes": megabytes,
                "bytes_per_example_and_boundary": per_example,
                "schedules": found,
            }
            print(f"{architecture}: {megabytes:.0f} MB, {per_example / 1000:.0f} kB an example and boundary")
            for name, row in found.items():
                bound = f"{row['limit']:.2f}" if row["limit"] else "-"
                print(
                    f"  {name:15} {row['speedup']:6.2f} times (limit {bound}), first {row['seconds_first']:.2f} s,"
                    f" then {row['seconds_stored']:.2f} s against {row['seconds_plain']:.2f} s,"
                    f" losses differ by {row['max_relative_loss_difference']:.1e}",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
