"""Training as a generator: each `next` trains one epoch, evaluates it and yields a `Measurement`.

Everything random in an epoch comes from (trial seed, epoch, rank), so runs that interleave in one process do not
disturb each other and a resumed run repeats an uninterrupted one bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from sweeper.core.errors import DivergedError, InfeasibleError, MismatchError
from sweeper.core.seeds import derive_seed
from sweeper.core.selection import best_measurement
from sweeper.core.trial import Measurement, TrialSpec
from sweeper.models import adapters
from sweeper.models.load import Pretrained
from sweeper.tasks.base import Examples, LossOptions, Task
from sweeper.train import checkpoint, parallel, sharding
from sweeper.train.activation_cache import ActivationStore, Prefix, Serving, cached_prefix, is_worth_it, uncached
from sweeper.train.augment import Augmentation
from sweeper.train.balance import class_weights
from sweeper.train.batches import epoch_batches, steps_per_epoch
from sweeper.train.evaluate import evaluate, write_threshold
from sweeper.train.gradients import Gradients
from sweeper.train.memory import must_fit
from sweeper.train.optim import carry_state, make_optimizer, schedule, set_rates
from sweeper.train.options import TrainOptions
from sweeper.train.packed import check_packing
from sweeper.train.readback import (
    check_batch_size,
    check_lora,
    check_model,
    check_rates,
    check_reinitialised,
    check_same_stage,
    check_stage,
    read_stage,
)
from sweeper.train.settings import Settings
from sweeper.train.unfreezing import Stage, stages


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """The two splits that training sees.

    Parameters
    ----------
    key:
        Names their encoded content and nothing else; what is derived from them is stored under it.
    """

    train: Examples
    validation: Examples
    key: str = ""


def train(
    trial: TrialSpec,
    task: Task,
    model: Pretrained,
    data: TrainData,
    options: TrainOptions,
    resume: Path | None = None,
    activations: ActivationStore | None = None,
) -> TrainingRun:
    """Set a trial up and return it as an iterator of measurements, one per epoch.

    Parameters
    ----------
    trial:
        What to train; its ``max_epochs`` span the learning-rate schedule.
    resume:
        A folder written by `TrainingRun.save_snapshot`: goes on after its last epoch.
    activations:
        Where states of frozen blocks are kept; None: frozen blocks are run in every step.

    Raises
    ------
    InfeasibleError
        When the configuration cannot run with this model or data.
    MismatchError
        When what would run is not what was asked.
    """
    return TrainingRun(trial, task, model, data, options, resume, activations)


class TrainingRun(Iterator[Measurement]):
    """A trial under way; see `train`.

    ``effective`` holds the settings read back from the live objects; its ``stages`` list every unfreezing stage, each
    set up once before training to read it back, and compared again when it begins. ``epoch`` counts the epochs
    completed.
    """

    def __init__(
        self,
        trial: TrialSpec,
        task: Task,
        model: Pretrained,
        data: TrainData,
        options: TrainOptions,
        resume: Path | None,
        activations: ActivationStore | None,
    ) -> None:
        self._trial, self._task, self._model, self._data, self._options = trial, task, model, data, options
        self._settings = Settings.from_params(trial.params)
        self._settings.refuse(task.not_applicable)
        self._balance = self._settings.balance or options.balance
        self._augmentation = Augmentation.of(self._settings)
        self._device = torch.device(options.device)
        self._measure = options.measure
        self._activations = activations
        self._serve_validation: Serving = uncached
        self._measurements: list[Measurement] = []
        self._best: checkpoint.State = {}
        self._threshold: float | None = None
        self._stages = stages(
            self._settings,
            model.layout.num_blocks,
            trial.max_epochs,
            trains_head=adapters.trains_head(model.module),
        )
        self._weights = self._balance_weights()
        self._optimizer: Any = None
        self._wrapped: Any = None
        self._frozen: list[torch.nn.Module] = []
        self._is_sharded = options.strategy == "fsdp" and parallel.world_size() > 1
        self._gathered: checkpoint.State = {}
        self._gradients = Gradients(
            task=task,
            examples=data.train,
            options=options,
            augmentation=self._augmentation,
            loss_options=self._loss_options(),
            seed=trial.seed,
            is_sharded=self._is_sharded,
            micro_batch_size=options.micro_batch_size,
        )
        if len(data.train) < self._settings.batch_size:
            raise InfeasibleError(
                f"batch_size: {self._settings.batch_size} is more than the {len(data.train)} training examples"
            )
        self._steps = steps_per_epoch(len(data.train), self._settings.batch_size)
        reinitialised = self._settings.num_reinitialised_blocks
        if reinitialised > model.layout.num_blocks:
            raise InfeasibleError(
                f"num_reinitialised_blocks: the model has {model.layout.num_blocks} blocks, got {reinitialised}"
            )
        self._module: Any = model.instantiate(trial.seed, self._settings.dropouts, reinitialised)
        live_reinitialised = check_reinitialised(model, self._module, self._settings)
        self._layout = model.layout
        if (lora := self._settings.lora) is not None:
            self._layout = adapters.attach(self._module, model.layout, lora, derive_seed(trial.seed, "adapters"))
        if options.packing:
            check_packing(self._module, task, data.train, self._augmentation)
        if options.gradient_checkpointing:
            sharding.checkpoint_activations(self._module)
        with must_fit("the weights"):
            self._module = self._module if self._is_sharded else self._module.to(self._device)
        self.effective: dict[str, Any] = {
            "batch_size": max(len(rows) for rows in self._batches(0)),
            "dropouts": check_model(model, self._module, self._settings),
            "lora": check_lora(self._module, self._settings),
            "max_epochs": trial.max_epochs,
            "total_steps": self._steps * trial.max_epochs,
            "lr_scheduler_type": self._settings.lr_scheduler_type,
            "precision": options.precision,
            "num_workers": parallel.world_size(),
            "strategy": options.strategy,
            "packing": options.packing,
            "gradient_checkpointing": bool(getattr(self._module, "is_gradient_checkpointing", False)),
            "num_reinitialised_blocks": live_reinitialised,
            "balance": self._balance,
            "focal_gamma": self._settings.focal_gamma,
            "label_smoothing": self._settings.label_smoothing,
            "patience": self._settings.patience,
            "activation_cache": activations is not None and self._augmentation.is_off,
            "augmentation": {name: value for name, value in vars(self._augmentation).items() if value},
            "stages": [
                {"from_epoch": stage.from_epoch, **self._set_up(stage, self._module)[1]} for stage in self._stages
            ],
        }
        check_batch_size(self._settings.batch_size, self.effective["batch_size"])
        if resume is None:
            self._enter(self._stages[0])
        else:
            self._restore(checkpoint.load_snapshot(resume))

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self._measurements[-1].epoch if self._measurements else 0

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """All measurements so far, those before a resumed snapshot included."""
        return tuple(self._measurements)

    @property
    def micro_batch_size(self) -> int | None:
        """Most examples that a worker holds at once by now; None: its part of a batch."""
        return self._gradients.micro_batch_size

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Measurement:
        if self.epoch >= self._trial.max_epochs:
            raise StopIteration
        if self._is_exhausted():
            self._measurements.append(replace(self._measurements[-1], epoch=self.epoch + 1))
            return self._measurements[-1]
        began = time.perf_counter()
        for stage in self._stages:
            if stage.from_epoch == self.epoch > 0:
                self._enter(stage)
        seed = derive_seed(self._trial.seed, "epoch", self.epoch, parallel.rank())
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            with self._measure("training"):
                train_loss = self._train_epoch()
        parallel.share_buffers(self._live)
        if self._is_sharded:
            sharding.bring_home(self._live, self._module)
        with self._measure("evaluation"):
            validation_loss, predictions = evaluate(
                self._live, self._task, self._data.validation, self._options, self._serve_validation
            )
        if not np.isfinite(train_loss) or not np.isfinite(validation_loss) or not np.isfinite(predictions).all():
            raise DivergedError(f"the loss is not finite in epoch {self.epoch + 1}")
        if not self._is_sharded:
            parallel.check_equal(self._module)
        before = self._measurements[-1].elapsed_seconds if self._measurements else 0.0
        threshold = self._task.choose_threshold(self._data.validation.targets, predictions)
        measurement = Measurement(
            epoch=self.epoch + 1,
            train_loss=train_loss,
            validation_loss=validation_loss,
            metrics=self._task.score(self._data.validation.targets, predictions, threshold),
            elapsed_seconds=before + time.perf_counter() - began,
        )
        self._measurements.append(measurement)
        if best_measurement(self._measurements, self._task.objective) is measurement:
            with self._measure("checkpoint"):
                self._best = checkpoint.copy_weights(self._module)
            self._threshold = threshold
        return measurement

    def _is_exhausted(self) -> bool:
        """Whether ``patience`` epochs have passed without a better score: the weights then stay as they are.

        The epochs that are left repeat the last measurement at no cost, so that rungs and tables are like any trial's.
        """
        best = best_measurement(self._measurements, self._task.objective)
        patience = self._settings.patience
        return patience is not None and best is not None and self.epoch - best.epoch >= patience

    def gather(self) -> None:
        """Prepare a snapshot; call on every worker before one of them saves it."""
        if self._is_sharded:
            self._gathered = checkpoint.optimizer_state(self._optimizer, self._live)

    def save_snapshot(self, folder: Path) -> None:
        """Write the full state into an existing folder; call between measurements, on one worker, after `gather`."""
        checkpoint.save_snapshot(
            folder,
            checkpoint.Snapshot(
                asked=self._asked,
                weights=checkpoint.copy_weights(self._module),
                best=self._best,
                optimizer=self._gathered or checkpoint.optimizer_state(self._optimizer, self._module),
                measurements=self._measurements,
                micro_batch_size=self.micro_batch_size,
                threshold=self._threshold,
            ),
        )

    def save_best(self, folder: Path) -> None:
        """Write the best epoch's weights as a folder that ``from_pretrained`` loads."""
        assert self._best, "no epoch has been measured yet"
        state = self._best
        if self._settings.lora is not None:
            adapters.save_adapter(
                self._module, state, self._layout, self._model.info.checkpoint, folder / adapters.FOLDER
            )
            state = adapters.merged(self._module, state)
        self._model.save(state, folder)
        write_threshold(folder, self._threshold)

    def close(self) -> None:
        """Free the weights and the optimizer; the run is over."""
        self._module = self._wrapped = self._optimizer = None
        self._frozen, self._best, self._gathered = [], {}, {}
        self._gradients.module, self._gradients.serve, self._serve_validation = None, uncached, uncached

    @property
    def _asked(self) -> dict[str, Any]:
        """What a snapshot and the trial that goes on from it must share (JSON)."""
        return {"seed": self._trial.seed, "max_epochs": self._trial.max_epochs, "params": dict(self._trial.params)}

    # -- stages --------------------------------------------------------------------------------------------

    @property
    def _live(self) -> Any:
        """The module whose parameters are trained: the plain one, or its sharded copy."""
        return self._wrapped if self._is_sharded else self._module

    def _set_up(self, stage: Stage, module: Any) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
        """Let a stage's groups train and build their optimizer; read both back and compare."""
        layout = self._layout
        parameters = dict(module.named_parameters())
        for group, names in enumerate(layout.groups):
            for name in names:
                parameters[name].requires_grad_(group in stage.rates)
        optimizer = make_optimizer(self._settings, module, layout, stage)
        live = read_stage(optimizer, module, layout)
        check_stage(live, self._settings, stage)
        return optimizer, live

    def _enter(self, stage: Stage) -> None:
        """Begin a stage; parameters that went on training keep their moments."""
        optimizer, live = self._set_up(stage, self._module)
        if self._is_sharded:
            sharded = sharding.shard(self._module, self._layout, self._device)
            optimizer, live = self._set_up(stage, sharded)
        check_same_stage(self.effective["stages"][self._stages.index(stage)], live)
        if self._optimizer is not None and self._is_sharded:
            checkpoint.carry_state(self._optimizer, self._live, optimizer, sharded)
        elif self._optimizer is not None:
            carry_state(self._optimizer, optimizer)
        self._stage, self._optimizer = stage, optimizer
        self._wrapped = sharded if self._is_sharded else parallel.wrap(self._module, self._device)
        self._gradients.module = self._wrapped
        self._frozen = self._layout.frozen_modules(self._live, stage.rates)
        with self._measure("cache"):
            self._gradients.serve, self._serve_validation = self._serve()

    def _is_pristine_below(self, boundary: int) -> bool:
        """Whether every weight below a boundary is the checkpoint's: none drawn anew, none trained before."""
        layout = self._model.layout
        below = [name for names in layout.groups[:boundary] for name in names]
        drawn = tuple(f"{name}." for name in self._model.fresh)
        kept = layout.num_blocks - self._settings.num_reinitialised_blocks
        return boundary - 1 <= kept and not any(name.startswith(drawn) for name in below if drawn)

    def _serve(self) -> tuple[Serving, Serving]:
        """Return how batches of train and validation get past the frozen blocks of this stage: from a store, if so."""
        boundary, data = self._stage.lowest, self._data
        later = [stage.from_epoch for stage in self._stages if stage.from_epoch > self._stage.from_epoch]
        num_epochs = min(later, default=self._trial.max_epochs) - self._stage.from_epoch
        num_rows = len(data.train) + len(data.validation)
        if (
            self._activations is None
            or not self._augmentation.is_off
            or not self._is_pristine_below(boundary)
            or not is_worth_it(num_rows, num_epochs, boundary, self._model.layout.num_blocks)
        ):
            return uncached, uncached
        prefix = Prefix(
            module=self._module,
            layout=self._model.layout,
            boundary=boundary,
            key=f"{self._model.info.fingerprint} {data.key}",
            device=self._device,
            precision=self._options.precision,
            autocast=self._options.autocast,
        )
        return (
            cached_prefix(self._activations, prefix, data.train, "train"),
            cached_prefix(self._activations, prefix, data.validation, "validation"),
        )

    def _restore(self, snapshot: checkpoint.Snapshot) -> None:
        """Go on where a snapshot stands."""
        if snapshot.asked != self._asked:
            raise MismatchError(f"the snapshot belongs to another trial: {snapshot.asked}, asked {self._asked}")
        self._measurements = list(snapshot.measurements)
        self._best = snapshot.best
        self._threshold = snapshot.threshold
        self._gradients.micro_batch_size = snapshot.micro_batch_size
        self._module.load_state_dict(snapshot.weights)
        # The stage that was under way: one that begins at this very epoch is entered by the next step.
        self._enter([stage for stage in self._stages if stage.from_epoch < max(self.epoch, 1)][-1])
        checkpoint.restore_optimizer(self._optimizer, self._live, snapshot.optimizer)

    # -- an epoch ------------------------------------------------------------------------------------------

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        lengths = self._data.train.lengths
        if self._options.packing:  # rows fill up best with examples of all lengths
            lengths = np.ones_like(lengths)
        sampling = self._weights[self._data.train.targets] if self._balance == "sampler" else None
        seed = derive_seed(self._trial.seed, "order")
        return epoch_batches(lengths, self._settings.batch_size, seed, epoch, sampling)

    def _loss_options(self) -> LossOptions:
        weights = None
        if self._balance == "class-weights":
            weights = torch.as_tensor(self._weights, dtype=torch.float32, device=self._device)
        return LossOptions(
            label_smoothing=self._settings.label_smoothing,
            focal_gamma=self._settings.focal_gamma,
            class_weights=weights,
        )

    def _balance_weights(self) -> NDArray[np.float64]:
        if self._balance == "none":
            return np.ones(1)
        return class_weights(self._data.train.targets, len(self._task.head.labels))

    def _train_epoch(self) -> float:
        """Train one epoch and return its mean loss per example."""
        self._wrapped.train()
        for module in self._frozen:
            module.training = False
        settings, total = self._settings, self.effective["total_steps"]
        trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        losses = torch.zeros((), dtype=torch.float64, device=self._device)
        count = 0
        for index, rows in enumerate(self._batches(self.epoch)):
            step = self.epoch * self._steps + index
            factor = schedule(settings.lr_scheduler_type, step, total, settings.warmup_ratio)
            set_rates(self._optimizer, factor)
            if index == 0:
                check_rates(self._optimizer, self._live, self._layout, self._stage, factor)
            losses += self._gradients.add(rows, self.epoch, index)
            with self._measure("optimizer"):
                if settings.max_grad_norm > 0:
                    torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
                with must_fit("weights, gradients and moments"):
                    self._optimizer.step()
                self._optimizer.zero_grad(set_to_none=True)
            count += len(rows)
        return float(parallel.total(losses)) / count
