"""What the peers share: Hugging Face's Trainer over one trial of the work list, with freezing done by hand.

Which parameters form a block, which blocks a schedule trains at which rate, the weights of a new head, and the order
of the examples are sweeper's, so that all tools train the same thing and scores differ by arithmetic alone. The order
is one by length, as the Trainer's own option has it: padding is small. Everything else is the Trainer's own.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers as hf
from PIL import Image
from torch.utils.data import DataLoader, Sampler

from sweeper.core.seeds import derive_seed
from sweeper.models.blocks import find_blocks
from sweeper.models.load import draw_anew, fresh_modules
from sweeper.train.batches import epoch_batches, steps_per_epoch
from sweeper.train.optim import schedule
from sweeper.train.settings import Settings
from sweeper.train.unfreezing import Stage, stages

os.environ["HF_HUB_OFFLINE"] = "1"
hf.logging.set_verbosity_error()
hf.utils.logging.disable_progress_bar()


class Work:
    """The list of trials, from the file that `sweep_vs_peers` wrote."""

    def __init__(self, path: str) -> None:
        read = json.loads(Path(path).read_text())
        self.trials: list[dict[str, Any]] = read["trials"]
        self.checkpoints: dict[str, str] = read["checkpoints"]
        self.max_epochs: int = read["max_epochs"]
        self.max_length: int = read["max_length"]
        self.classes: list[str] = read["classes"]
        self.device: str = read["device"]
        self.precision: str = read["precision"]
        self.folder = Path(path).parent

    @property
    def is_image(self) -> bool:
        """Whether the inputs are images; else texts."""
        return "image" in pq.read_schema(self.folder / "train.parquet").names

    def split(self, name: str, model: str) -> tuple[list[dict[str, Any]], Any]:
        """Return a split, preprocessed once for a model, and the collator of its batches."""
        table = pq.read_table(self.folder / f"{name}.parquet")
        labels = table.column("label").to_pylist()
        if self.is_image:
            processor = hf.AutoImageProcessor.from_pretrained(self.checkpoints[model], use_fast=False)
            images = [Image.open(io.BytesIO(cell)).convert("RGB") for cell in table.column("image").to_pylist()]
            pixels = processor(images, return_tensors="pt")["pixel_values"]
            rows = [{"pixel_values": p, "labels": y} for p, y in zip(pixels, labels, strict=True)]
            return rows, hf.default_data_collator
        tokenizer = hf.AutoTokenizer.from_pretrained(self.checkpoints[model])
        tokens = tokenizer(table.column("text").to_pylist(), truncation=True, max_length=self.max_length)
        rows = [
            {**{key: tokens[key][i] for key in tokens}, "labels": label}  # type: ignore[index]
            for i, label in enumerate(labels)
        ]
        return rows, hf.DataCollatorWithPadding(tokenizer)

    def model(self, trial: dict[str, Any]) -> Any:
        """Return a fresh model of a trial, with its schedule as ``model.schedule``."""
        torch.manual_seed(trial["seed"])
        auto = hf.AutoModelForImageClassification if self.is_image else hf.AutoModelForSequenceClassification
        model, report = auto.from_pretrained(
            self.checkpoints[trial["model"]],
            num_labels=len(self.classes),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        draw_anew(model, fresh_modules(report["missing_keys"]), trial["seed"])
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = trial["params"]["dropout"]
        model.trial = trial
        model.schedule = Schedule(model, trial, self.max_epochs)
        return model

    def trainer(self, model_name: str, folder: Path, trial: dict[str, Any] | None = None, **options: Any) -> HandFrozen:
        """Return a Trainer for a trial, or for any trials of a model; ``folder`` receives the scores by trial."""
        train, collate = self.split("train", model_name)
        own = arguments_of(trial, len(train), self.max_epochs) if trial is not None else {}
        validation, _ = self.split("validation", model_name)
        arguments = hf.TrainingArguments(
            output_dir=str(folder / "trainer"),
            num_train_epochs=self.max_epochs,
            per_device_eval_batch_size=256,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=self.device == "cpu",
            bf16=self.precision == "bf16",
            lr_scheduler_type="linear",
            max_grad_norm=1.0,
            **own,
        )
        return HandFrozen(
            args=arguments,
            train_dataset=train,  # type: ignore[arg-type]
            eval_dataset=validation,  # type: ignore[arg-type]
            data_collator=collate,
            compute_metrics=_accuracy,
            callbacks=[ByEpoch(folder)],
            **options,
        )


class Schedule:
    """Which parameters train at which peak rate, and from which epoch."""

    def __init__(self, model: Any, trial: dict[str, Any], max_epochs: int) -> None:
        self.index: int = trial["index"]
        self.groups = find_blocks(model).groups
        settings = Settings.from_params(trial["params"])
        self.warmup_ratio = settings.warmup_ratio
        self.stages: tuple[Stage, ...] = stages(settings, len(self.groups) - 2, max_epochs)
        self.rates = {group: rate for stage in self.stages for group, rate in stage.rates.items()}

    def apply(self, model: Any, epoch: int) -> None:
        """Freeze and unfreeze for an epoch that begins; modules without a trained parameter run in evaluation mode."""
        stage = [stage for stage in self.stages if stage.from_epoch <= epoch][-1]
        parameters = dict(model.named_parameters())
        for group, names in enumerate(self.groups):
            for name in names:
                parameters[name].requires_grad = group in stage.rates
        frozen = [
            module
            for module in model.modules()
            if (own := list(module.parameters())) and not any(p.requires_grad for p in own)
        ]

        def train(mode: bool = True) -> Any:
            type(model).train(model, mode)
            for module in frozen:
                module.eval()
            return model

        model.train = train


class Order(Sampler[list[int]]):
    """A trial's batches, epoch after epoch."""

    def __init__(self, trial: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self._lengths = np.asarray([len(row.get("input_ids", [0])) for row in rows])
        self._batch_size: int = trial["params"]["batch_size"]
        self._seed = derive_seed(trial["seed"], "order")
        self._epoch = 0

    def __len__(self) -> int:
        return steps_per_epoch(len(self._lengths), self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        batches = epoch_batches(self._lengths, self._batch_size, self._seed, self._epoch)
        self._epoch += 1
        return iter([batch.tolist() for batch in batches])


class HandFrozen(hf.Trainer):
    """The Trainer with an optimizer of one group per block, as discriminative rates need, and given batches."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        order = Order(self.model.trial, self.train_dataset)  # type: ignore[arg-type, union-attr]
        return DataLoader(self.train_dataset, batch_sampler=order, collate_fn=self.data_collator)  # type: ignore[arg-type]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        ratio = self.model.schedule.warmup_ratio  # type: ignore[union-attr]
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: schedule("linear", step, num_training_steps, ratio)
        )
        return self.lr_scheduler

    def create_optimizer(self, model: Any = None) -> Any:
        model = model or self.model
        plan = model.schedule
        parameters = dict(model.named_parameters())
        decay = self.args.weight_decay
        groups = []
        for group, rate in plan.rates.items():
            for weight_decay, wanted in ((decay, lambda p: p.dim() >= 2), (0.0, lambda p: p.dim() < 2)):
                chosen = [parameters[name] for name in plan.groups[group] if wanted(parameters[name])]
                groups.append({"params": chosen, "lr": rate, "weight_decay": weight_decay})
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        return self.optimizer


class ByEpoch(hf.TrainerCallback):
    """Freezes by hand as epochs begin, and keeps the accuracy after the last one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_epoch_begin(self, _: Any, state: Any, __: Any, model: Any = None, **___: Any) -> None:
        model.schedule.apply(model, round(state.epoch or 0))

    def on_evaluate(self, *_: Any, model: Any = None, metrics: Any = None, **__: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{model.schedule.index}.json").write_text(json.dumps(metrics["eval_accuracy"]))


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def arguments_of(trial: dict[str, Any], num_examples: int, max_epochs: int) -> dict[str, Any]:
    """Return a trial's own training arguments, by the Trainer's names."""
    params = trial["params"]
    steps = -(-num_examples // params["batch_size"]) * max_epochs
    return {
        "learning_rate": params["learning_rate"],
        "per_device_train_batch_size": params["batch_size"],
        "weight_decay": params["weight_decay"],
        "warmup_steps": round(params["warmup_ratio"] * steps),
        "seed": trial["seed"],
    }
