"""What a lane's worker process does: train and test trials, with data and models kept warm between them."""

from __future__ import annotations

import hashlib
import logging
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from sweeper.core.errors import TrialError, is_of_storage
from sweeper.core.trial import Measurement, Segment, TrialKind, TrialSpec
from sweeper.data.encoded import encoded
from sweeper.data.prepare import PreparedData, load_prepared, retention_folder
from sweeper.engine.messages import Command, Leave, Left, Measured, NextEpoch, Reply, Start, Started, Test, Tested
from sweeper.engine.worker_config import WorkerConfig
from sweeper.models.load import Pretrained, load
from sweeper.store.profile import append_spans
from sweeper.store.tables import write_predictions
from sweeper.tasks.base import Examples, Task
from sweeper.tasks.registry import make_task
from sweeper.train.activation_cache import ActivationStore
from sweeper.train.evaluate import predict
from sweeper.train.footprint import CudaMemory, DeviceMemory, allocator_share, peak_bytes
from sweeper.train.inference import inference_cost
from sweeper.train.loop import TrainData, TrainingRun, train
from sweeper.train.precision import settled_precision
from sweeper.train.retention import ProbeData, retained
from sweeper.train.spans import Spans

logger = logging.getLogger("sweeper")


class TrainingWorker:
    """A `LaneWorker` that trains. Pristine weights and encoded splits stay in memory from trial to trial."""

    def __init__(self, config: WorkerConfig, began: float) -> None:
        torch.set_num_threads(config.cpus)
        if config.options.device == "cuda" and config.gpu_share < 1:
            _keep_to(config)
        self._config = config
        self._paths = config.paths.here()
        self._storage = self._paths.storage
        precision = settled_precision(config.options.precision, config.options.device, self._paths.precision)
        self._options = replace(config.options, precision=precision)
        self._spans = None
        if config.profiled:
            self._spans = Spans(torch.cuda.synchronize if config.options.device == "cuda" else lambda: None)
            self._options = replace(self._options, measure=self._spans)
        self._measure = self._options.measure
        self._storage.obtain(self._paths.data)
        self._data: PreparedData = load_prepared(self._paths.data)
        self._task: Task = make_task(config.spec.task, self._data.facts)
        training = config.spec.training
        self._activations = None
        if training.caches_activations(config.options.device):
            limit = int(training.activation_cache_gigabytes * 1e9)
            self._activations = ActivationStore(folder=self._paths.activations, limit_bytes=limit)
        self._models: dict[str, Pretrained] = {}
        self._fingerprints: dict[str, str] = {}  # of tokenizers and image processors
        self._examples: dict[tuple[str, str, int | None], Examples] = {}
        self._retained: dict[str, tuple[str, float]] = {}  # by the checkpoints, see `sweeper.train.retention`
        self._trial: TrialSpec | None = None
        self._segment: Segment | None = None
        self._run: TrainingRun | None = None
        self._saved_at = time.monotonic()
        self._idle_since = time.time()
        if self._spans is not None:
            self._spans.add("start-up", began, self._idle_since - began)

    def handle(self, command: Command) -> Reply:
        """Carry out one command; see `LaneWorker`."""
        if self._spans is not None:
            self._spans.add("waiting", self._idle_since, time.time() - self._idle_since)
        try:
            with self._measure("other"):
                return self._carry_out(command)
        finally:
            self._idle_since = time.time()
            if self._spans is not None and not isinstance(command, NextEpoch):
                append_spans(self._config.paths, self._spans.drain())

    def _carry_out(self, command: Command) -> Reply:
        match command:
            case Start(segment):
                return self._start(segment)
            case NextEpoch():
                return Measured(self._next_epoch())
            case Test(trial):
                return self._test(trial)
            case Leave(snapshot):
                self._leave(snapshot=snapshot)
                return Left()

    # -- commands ------------------------------------------------------------------------------------------

    def _start(self, segment: Segment) -> Started:
        self._leave(snapshot=False)
        trial = segment.trial
        model = self._model(trial.model)
        data = TrainData(
            train=self._split(trial.model, "train", trial.split_seed),
            validation=self._split(trial.model, "validation", trial.split_seed),
            key=self._content_key(trial.model, trial.split_seed),
        )
        resume = self._last_snapshot(trial)
        with self._measure("set-up"):
            self._run = train(trial, self._task, model, data, self._options, resume, self._activations)
        self._trial, self._segment, self._saved_at = trial, segment, time.monotonic()
        return Started(
            node=socket.gethostname(),
            from_epoch=self._run.epoch,
            effective=self._run.effective,
            measurements=self._run.measurements,
        )

    def _next_epoch(self) -> Measurement:
        assert self._run is not None, "an epoch was asked before a trial was started"
        assert self._trial is not None
        assert self._segment is not None
        measurement = next(self._run)
        finished = measurement.epoch == self._trial.max_epochs
        if finished and self._trial.kind is TrialKind.CONFIRM and _rank() == 0:
            folder = self._paths.confirmation_weights(self._trial.trial_id)
            with self._measure("checkpoint"):
                _replace_folder(folder, self._run.save_best)
                self._storage.publish(folder)
        elif not finished and (measurement.epoch in self._segment.snapshot_at or self._is_due()):
            self._snapshot()
        return measurement

    def _test(self, trial: TrialSpec) -> Tested:
        began = time.perf_counter()
        model = self._model(trial.model)
        weights = self._paths.confirmation_weights(trial.trial_id)
        if not self._storage.obtain(weights):
            raise TrialError(f"the confirmed weights of {trial.trial_id} are missing from {weights.name}")
        examples = self._split(trial.model, "test", None)
        with self._measure("evaluation"):
            predictions = predict(model, weights, self._task, examples, self._options)
        if _rank() == 0:
            part = self._paths.predictions_part(trial.trial_id)
            write_predictions(
                part,
                model=trial.model,
                config=trial.config,
                seed=trial.seed,
                example_ids=predictions.example_ids,
                targets=predictions.targets,
                predictions=predictions.decisions,
                probabilities=predictions.probabilities,
            )
            self._storage.publish(part)
        elapsed = time.perf_counter() - began
        first = trial.config == "tuned" and trial.number == 0 and _rank() == 0  # once a model is enough
        return Tested(
            metrics=dict(predictions.scores),
            num_examples=len(predictions.targets),
            elapsed_seconds=elapsed,
            cost=inference_cost(model, weights, self._task, examples, self._config.options) if first else {},
            baseline=self._task.baseline(self._split(trial.model, "train", None).targets, examples.targets)
            if first
            else {},
            retention=self._retention(model, weights),
        )

    def _retention(self, model: Pretrained, weights: Path) -> dict[str, Any]:
        """Return what a confirmed run and its checkpoint know of the study's other set; empty where none is named."""
        if self._config.spec.task.retention is None:
            return {}
        name = model.info.name
        try:
            data = ProbeData.of(self._config.spec, load_prepared(retention_folder(self._paths.data)), model)
            if name not in self._retained:
                self._retained[name] = retained(model.instantiate(0, {}).to(self._config.options.device), model, data)
            metric, before = self._retained[name]
            _, after = retained(model.load_weights(weights).to(self._config.options.device), model, data)
        except Exception as error:  # the test's scores are there already, and must not be lost for a figure beside them
            if is_of_storage(error):
                raise
            logger.warning("forgetting of %s was not measured: %s: %s", name, type(error).__name__, error)
            return {}
        return {"metric": metric, "before": before, "after": after}

    def peak_bytes(self, model: str, params: Mapping[str, Any], memory: DeviceMemory) -> int:
        """Return what training a model with ``params`` takes of the device at most; see `sweeper.train.footprint`."""
        data = TrainData(train=self._split(model, "train", None), validation=self._split(model, "validation", None))
        return peak_bytes(self._task, self._model(model), data, params, self._options, memory)

    def _leave(self, *, snapshot: bool) -> None:
        if self._run is not None and self._trial is not None:
            if snapshot and 0 < self._run.epoch < self._trial.max_epochs:
                self._snapshot()
            self._run.close()
        self._run = self._trial = None

    # -- snapshots -----------------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved_at > self._config.spec.training.snapshot_seconds

    def _snapshot(self) -> None:
        """Save the running trial under its attempt's own name: a partitioned twin cannot overwrite it."""
        assert self._run is not None
        assert self._trial is not None
        assert self._segment is not None
        self._run.gather()
        if _rank() == 0:
            name = f"e{self._run.epoch:05d}-a{self._segment.attempt}"
            folder = self._paths.snapshots(self._trial.trial_id)
            try:
                with self._measure("checkpoint"):
                    _replace_folder(folder / name, self._run.save_snapshot)
                    self._storage.publish(folder / name)
                for older in self._storage.names(folder)[:-1]:
                    self._storage.remove(folder / older)
            except Exception as error:
                if not is_of_storage(error):
                    raise
                # A trial without a snapshot starts again from its seed, which gives the same. What must be written, the
                # ledger and a confirmed run's weights, says by itself when it cannot be.
                logger.warning("no snapshot of %s after epoch %d: %s", self._trial.trial_id, self._run.epoch, error)
        self._saved_at = time.monotonic()

    def _last_snapshot(self, trial: TrialSpec) -> Path | None:
        folder = self._paths.snapshots(trial.trial_id)
        names = self._storage.names(folder)
        return folder / names[-1] if names and self._storage.obtain(folder / names[-1]) else None

    # -- what stays warm -----------------------------------------------------------------------------------

    def _model(self, name: str) -> Pretrained:
        if name not in self._models:
            spec = next(model for model in self._config.spec.models if model.name == name)
            with self._measure("start-up"):
                self._models[name] = load(spec, self._task.head)
        return self._models[name]

    def _split(self, model: str, split: str, split_seed: int | None) -> Examples:
        key = (model, split, split_seed)
        if key not in self._examples:
            preprocessor = self._model(model).preprocessor
            with self._measure("data"):
                table = encoded(
                    self._paths.encoded,
                    f"{split}-{self._content_key(model, split_seed)}",
                    lambda: self._task.encode(self._raw(split, split_seed), preprocessor),
                )
                self._examples[key] = self._task.open(table, preprocessor)
        return self._examples[key]

    def _content_key(self, model: str, split_seed: int | None) -> str:
        """Name all that a model's encoded splits depend on."""
        if model not in self._fingerprints:
            self._fingerprints[model] = _fingerprint(self._model(model).preprocessor)
        parts = (self._data.fingerprint, split_seed, self._task.cache_key(), self._fingerprints[model])
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def _raw(self, split: str, split_seed: int | None) -> pa.Table:
        if split == "test":
            return self._data.open_test()
        if split_seed is not None:
            return self._data.resplit(split_seed)[split == "validation"]
        return self._data.train() if split == "train" else self._data.validation()


def _keep_to(config: WorkerConfig) -> None:
    """Let this process's allocator take no more than its share of the GPU: it runs out before its neighbours do."""
    total = CudaMemory().total_bytes
    torch.cuda.set_per_process_memory_fraction(allocator_share(config.gpu_share, config.context_bytes, total))


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _fingerprint(preprocessor: Any) -> str:
    """Hash the files by which a tokenizer or image processor saves itself: all that its output depends on."""
    digest = hashlib.blake2b(digest_size=16)
    with tempfile.TemporaryDirectory() as folder:
        preprocessor.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _replace_folder(folder: Path, write: Any) -> None:
    """Let ``write`` fill a folder under a temporary name, then move it into place."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
