"""Two small models on each of six real data sets, through `sweeper run`: leaderboards beside the trivial answers.

    python benchmarks/real_sets.py --data DIR [--only wine,bccd] [--trials 3] [--epochs 3] [--output DIR] [--json OUT]
    python benchmarks/real_sets.py --data DIR --only bccd --epochs 30 --override KEY=VALUE

An override is of the study, as `sweeper run` takes it: 'training.resources_per_worker={CPU: 1, GPU: auto}'.
DIR holds sms_spam, wine_quality_white, gsm8k, clinc150_imbalanced, sign_language_digits and bccd, as their authors
publish them (csv, JSON Lines, an image folder, Pascal VOC). The models are built from their configurations and
pretrained here on the training inputs alone (masked or causal language modelling; detectors on scenes of
ellipses; images by telling how digits were turned), in seconds to minutes on one core. Budgets are tiny: they show
that each task works on real input, not which architecture is better. Of each study the trivial score, the default's and
the tuned one's on the test split are printed, and how far the training loss of the best trial went down.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blob_scenes
import numpy as np
import pyarrow as pa
import torch
import transformers as hf
from machine import facts
from tokenizers import ByteLevelBPETokenizer

from sweeper import load_results, load_study
from sweeper.core.trial import TrialSpec
from sweeper.data.prepare import prepare
from sweeper.models.load import load
from sweeper.tasks.registry import needs
from sweeper.train.loop import TrainData, train
from sweeper.train.options import TrainOptions
from sweeper.workflows.study import provisional

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SPACE = """
parameters:
  learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}
  batch_size: {type: categorical, choices: [16, 32]}
  weight_decay: {type: float, low: 1e-4, high: 0.1, log: true}
  warmup_ratio: {type: float, low: 0.0, high: 0.3}
  unfreezing: {type: categorical, choices: [full, last_blocks]}
  num_unfrozen_blocks: {type: int, low: 1, high: 2, when: {unfreezing: last_blocks}}
default: {learning_rate: 1e-3, batch_size: 32, weight_decay: 0.01, warmup_ratio: 0.1, unfreezing: full}
"""
SPACE_OF_DETECTORS = """
parameters:
  learning_rate: {type: float, low: 3e-4, high: 5e-3, log: true}
  batch_size: 8
  weight_decay: 1e-4
  warmup_ratio: {type: float, low: 0.0, high: 0.1}
  horizontal_flip: {type: categorical, choices: [0.0, 0.5]}
  lr_scheduler_type: {type: categorical, choices: [linear, cosine]}
  max_grad_norm: 1.0
default: {learning_rate: 1e-3, warmup_ratio: 0.05, horizontal_flip: 0.5, lr_scheduler_type: linear}
"""


@dataclass(frozen=True, kw_only=True)
class RealSet:
    """One study: its task section with paths below the data folder, and what makes its models."""

    task: dict[str, Any]
    models: Callable[[Path, pa.Table, int], list[str]]
    steps: int = 300
    epochs: int = 3
    space: str = SPACE


def encoders(folder: Path, train: pa.Table, steps: int) -> list[str]:
    """Pretrain the two encoders of examples/docstrings by masked-language modelling on the training inputs."""
    sys.path.insert(0, str(EXAMPLES / "docstrings"))
    import pretrain

    texts = train.column("text").to_pylist()
    tokenizer = pretrain.train_tokenizer(texts)
    encoded = tokenizer(texts, truncation=True, max_length=48, padding="max_length", return_tensors="pt")
    models = pretrain.make_models(len(tokenizer))
    for name, model in models.items():
        loss = pretrain.pretrain(model, encoded["input_ids"], tokenizer, steps)
        model.base_model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        print(f"  {name}: masked-language loss {loss:.3f} after {steps} steps", flush=True)
    return list(models)


def decoders(folder: Path, train: pa.Table, steps: int) -> list[str]:
    """Pretrain a GPT-2 and a Llama of half a million parameters on the prompts of the training split."""
    texts = train.column("text").to_pylist()
    backend = ByteLevelBPETokenizer()
    both = [*texts, *train.column("label").to_pylist()]
    backend.train_from_iterator(both, vocab_size=1024, special_tokens=["<end>"], show_progress=False)
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=backend._tokenizer, eos_token="<end>", model_max_length=256)
    common = {"vocab_size": len(tokenizer), "eos_token_id": 0, "bos_token_id": 0}
    models = {
        "gpt2": hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=96, n_layer=3, n_head=4, n_positions=256, **common)),
        "llama": hf.LlamaForCausalLM(
            hf.LlamaConfig(
                hidden_size=96,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=256,
                max_position_embeddings=256,
                **common,
            )
        ),
    }
    stream = torch.tensor([token for ids in tokenizer(texts)["input_ids"] for token in [*ids, 0]])
    rng = torch.Generator().manual_seed(0)
    for name, model in models.items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        model.train()
        losses = []
        for _ in range(steps):
            starts = torch.randint(len(stream) - 64, (16,), generator=rng)
            ids = stream[starts[:, None] + torch.arange(64)]
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        print(f"  {name}: language-model loss {np.mean(losses[-20:]):.3f} after {steps} steps", flush=True)
    return list(models)


def detectors(folder: Path, train: pa.Table, steps: int) -> list[str]:
    """Pretrain an RT-DETR and a D-FINE on scenes of ellipses; one that is there already is kept: each takes minutes."""
    for name, model in blob_scenes.make_models().items():
        if (folder / name / "model.safetensors").is_file():
            continue
        loss = blob_scenes.pretrain(model, steps)
        model.save_pretrained(folder / name)
        blob_scenes.processor().save_pretrained(folder / name)
        print(f"  {name}: detection loss {loss:.3f} after {steps} steps", flush=True)
    return ["rt_detr", "d_fine"]


def image_models(folder: Path, train: pa.Table, steps: int) -> list[str]:
    """Pretrain the quickstart's ResNet and ConvNeXt on scikit-learn's digits, unless they are there, and copy them."""
    home = EXAMPLES / "quickstart" / "checkpoints"
    if not (home / "convnext" / "model.safetensors").is_file():
        subprocess.run([sys.executable, str(EXAMPLES / "quickstart" / "pretrain.py")], check=True)
    for name in ("resnet", "convnext"):
        hf.AutoModel.from_pretrained(home / name).save_pretrained(folder / name)
        hf.AutoImageProcessor.from_pretrained(home / name).save_pretrained(folder / name)
    return ["resnet", "convnext"]


SETS = {
    "sms": RealSet(
        task={
            "type": "text-classification",
            "data": {"train": "sms_spam/messages.csv", "max_train_examples": 1000},
            "columns": {"input": "message", "target": "label"},
            "metric": {"name": "macro_f1"},
            "max_length": 48,
        },
        models=encoders,
    ),
    "wine": RealSet(
        task={
            "type": "regression",
            "data": {"train": "wine_quality_white/wine.csv", "max_train_examples": 800},
            "columns": {
                "input": [
                    "alcohol",
                    "density",
                    "volatile_acidity",
                    "chlorides",
                    "residual_sugar",
                    "free_sulfur_dioxide",
                    "total_sulfur_dioxide",
                    "fixed_acidity",
                    "citric_acid",
                    "ph",
                    "sulphates",
                ],
                "target": "quality",
                "significant_digits": 3,
            },
            "metric": {"name": "rmse"},
            "max_length": 96,
        },
        models=encoders,
        steps=150,
    ),
    "clinc": RealSet(
        task={
            "type": "text-classification",
            "data": {
                **{split: f"clinc150_imbalanced/{split}.csv" for split in ("train", "validation", "test")},
                "max_train_examples": 3000,
            },
            "columns": {"input": "text", "target": "intent"},
            "metric": {"name": "macro_f1"},
            "max_length": 32,
        },
        models=encoders,
        steps=400,
    ),
    "gsm8k": RealSet(
        task={
            "type": "text-generation",
            "data": {
                "train": "gsm8k/train.jsonl",
                "validation": 0.02,
                "test": 0.05,
                "max_train_examples": 400,
            },
            "columns": {"input": "question", "target": "answer"},
            "max_length": 160,
        },
        models=decoders,
        steps=200,
    ),
    "sign": RealSet(
        task={
            "type": "image-classification",
            "data": {"train": "sign_language_digits"},
            "image_size": 32,
        },
        models=image_models,
    ),
    "bccd": RealSet(
        task={
            "type": "object-detection",
            "data": {"train": "bccd", "validation": "bccd", "test": "bccd"},
            "metric": {"name": "map_50"},
            "image_size": 96,
        },
        models=detectors,
        steps=400,
        epochs=4,
        space=SPACE_OF_DETECTORS,
    ),
}


def study_text(name: str, chosen: RealSet, data: Path, models: list[str], options: argparse.Namespace) -> str:
    """Return a study file as JSON, which is YAML too."""
    sources = {k: str(data / v) if isinstance(v, str) else v for k, v in chosen.task["data"].items()}
    return json.dumps(
        {
            "schema": 1,
            "name": name,
            "storage_path": "results",
            "task": {**chosen.task, "data": sources},
            "models": [{"name": model, "checkpoint": f"./{model}"} for model in models],
            "search": {
                "num_trials": options.trials,
                "max_epochs": options.epochs or chosen.epochs,
                "space": "space.yaml",
            },
            "confirm": {"num_seeds": options.seeds},
        },
        indent=1,
    )


def names_of(chosen: RealSet) -> list[str]:
    """Return the names of the two models that a maker makes."""
    return {encoders: ["bert", "distilbert"], decoders: ["gpt2", "llama"], detectors: ["rt_detr", "d_fine"]}.get(
        chosen.models, ["resnet", "convnext"]
    )


def make_models(home: Path, study: Path, chosen: RealSet, steps: int | None) -> None:
    """Pretrain the two models on the study's own training inputs, which are prepared as the study prepares them."""
    spec = load_study(study)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(spec.task, seed=spec.seed, folder=Path(folder), **needs(spec.task))
        chosen.models(home, data.train(), steps or chosen.steps)


def run(name: str, chosen: RealSet, options: argparse.Namespace) -> dict[str, Any]:
    """Run one study and return what stands in the table."""
    home = options.output / name
    home.mkdir(parents=True, exist_ok=True)
    (home / "space.yaml").write_text(chosen.space)
    models = names_of(chosen)
    study = home / "study.yaml"
    study.write_text(study_text(name, chosen, options.data.resolve(), models, options))
    if not (home / models[-1] / "model.safetensors").is_file():
        make_models(home, study, chosen, options.steps)
    if options.prepare:
        return {}
    if options.defaults:
        train_defaults(name, chosen, options)
        return {}
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sweeper.cli", "run", str(study), *options.override], check=True)
    result = load_results(home / "results" / name)
    objective = result.manifest.content["objective"]
    losses = {}
    for model in models:
        done = [t for t in result.trials.to_pylist() if t["model"] == model and t["value"] is not None]
        best = (max if objective["goal"] == "maximize" else min)(done, key=lambda trial: trial["value"])
        series = [m for m in result.measurements.to_pylist() if m["trial_id"] == best["trial_id"]]
        losses[model] = [m["train_loss"] for m in sorted(series, key=lambda m: m["epoch"])]
    return {
        "metric": objective["metric"],
        "trivial": result.manifest.data.get("trivial", {}),
        "leaderboard": result.leaderboard,
        "train_losses": losses,
        "seconds": time.perf_counter() - began,
    }


def train_defaults(name: str, chosen: RealSet, options: argparse.Namespace) -> None:
    """Train each default in this process, without Ray, and print its validation score beside the trivial one."""
    home = options.output / name
    with provisional(load_study(home / "study.yaml")) as study:
        tables = {"train": study.data.train(), "validation": study.data.validation()}
        for model in study.spec.models:
            ready = load(model, study.task.head)
            splits = {
                split: study.task.open(study.task.encode(table, ready.preprocessor), ready.preprocessor)
                for split, table in tables.items()
            }
            space = study.spaces[model.name]
            trial = TrialSpec(
                trial_id="default",
                number=0,
                model=model.name,
                params=space.active(space.default),
                seed=1,
                max_epochs=options.epochs or chosen.epochs,
            )
            measured = list(train(trial, study.task, ready, TrainData(**splits), TrainOptions()))
            metric, sign = study.objective.metric, -1 if study.objective.goal == "maximize" else 1
            best = sign * min(sign * m.metrics[metric] for m in measured)
            trivial = study.task.baseline(splits["train"].targets, splits["validation"].targets).get(metric)
            print(
                f"{name} {model.name:10} {metric} on validation {best:.4f}, trivial "
                f"{'none' if trivial is None else f'{trivial:.4f}'}, training loss "
                f"{measured[0].train_loss:.3f} -> {measured[-1].train_loss:.3f}",
                flush=True,
            )


def show(name: str, found: dict[str, Any]) -> None:
    """Print one study's table."""
    metric = found["metric"]
    trivial = found["trivial"].get(metric)
    known = "none" if trivial is None else f"{trivial:.4f}"
    print(f"\n{name}: {metric} on test, trivial {known}, {found['seconds']:.0f} s")
    for row in found["leaderboard"]:
        losses = found["train_losses"][row["model"]]
        print(
            f"  {row['rank']}. {row['model']:10} tuned {row['tuned']['mean']:.4f}  default {row['default']['mean']:.4f}"
            f"  training loss {losses[0]:.3f} -> {losses[-1]:.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", default=",".join(SETS), help="comma-separated names")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of a trial; its own number for each set when left out")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of pretraining; its own number for each set when left out")
    parser.add_argument("--prepare", action="store_true", help="make the models and stop")
    parser.add_argument("--defaults", action="store_true", help="train the defaults in this process, without Ray")
    parser.add_argument("--output", type=Path, default=Path("results/real_sets"))
    parser.add_argument("--override", action="append", default=[], help="of the study, as `sweeper run` takes it")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options.output = options.output.resolve()
    found = {}
    for name in options.only.split(","):
        print(f"{name}:", flush=True)
        found[name] = run(name, SETS[name], options)
        if found[name]:
            show(name, found[name])
    if options.json and any(found.values()):
        options.json.write_text(json.dumps({"machine": facts(), "sets": found}, indent=1))


if __name__ == "__main__":
    main()
