"""Stored states of frozen blocks: the same results, without running those blocks."""

from __future__ import annotations

import errno
import io
import os
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
from PIL import Image
from trainbench import Bench, facts

from sweeper.core.trial import TrialSpec
from sweeper.models.load import load
from sweeper.spec.study import DataSpec, ModelSpec, TaskSpec
from sweeper.tasks.registry import make_task
from sweeper.train.activation_cache import ActivationStore
from sweeper.train.loop import TrainData, train
from sweeper.train.options import TrainOptions

IMAGES = {"resnet", "bottleneck", "vit", "convnext", "convnextv2", "swin"}
TEXTS = {"bert", "roberta", "deberta", "electra", "distilbert"}
SCHEDULES = {
    "head_only": {},
    "last_blocks": {"num_unfrozen_blocks": 1},
    "gradual": {"epochs_per_stage": 1},
    "head_then_full": {"head_fraction": 0.5},
    "lora": {"num_adapted_blocks": 1, "lora_rank": 2},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny.save_checkpoints(tmp_path_factory.mktemp("families"))


def table_for(kind):
    rng = np.random.default_rng(0)
    ids = [str(i) for i in range(40)]
    labels = pa.array([i % 2 for i in range(40)], pa.int32())
    if kind == "text":
        words = [" ".join(rng.choice(tiny.WORDS[4:], size=rng.integers(2, 24))) for _ in ids]
        return pa.table({"example_id": ids, "text": words, "label": labels})
    cells = []
    for _ in ids:
        sink = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(sink, "PNG")
        cells.append(sink.getvalue())
    return pa.table({"example_id": ids, "image": pa.array(cells, pa.binary()), "label": labels})


def made(checkpoint, family):
    kind = "image" if family in IMAGES else "text"
    spec = TaskSpec(type=f"{kind}-classification", data=DataSpec(train="x"))
    task = make_task(spec, ["a", "b"])
    model = load(ModelSpec(name="m", checkpoint=str(checkpoint)), task.head)
    table = table_for(kind)
    opened = [task.open(task.encode(part, model.preprocessor), model.preprocessor) for part in (table[:28], table[28:])]
    return task, model, TrainData(train=opened[0], validation=opened[1], key="k")


def measured(task, model, data, store, **params):
    params = {"learning_rate": 3e-3, "batch_size": 8} | params
    trial = TrialSpec(trial_id="t", number=0, model="m", params=params, seed=5, max_epochs=3)
    run = train(trial, task, model, data, TrainOptions(), None, store)
    entered = []
    first = run._module.get_submodule(model.layout.blocks[0])
    kind = type(first)
    original = kind.forward

    def forward(self, *args, **kwargs):
        entered.append(self is first)
        return original(self, *args, **kwargs)

    kind.forward = forward
    try:
        return list(run), sum(entered)
    finally:
        kind.forward = original


@pytest.mark.parametrize("family", sorted(IMAGES | TEXTS))
def test_stored_states_give_the_same_measurements_and_spare_the_frozen_blocks(family, checkpoints, tmp_path):
    task, model, data = made(checkpoints[family], family)
    store = ActivationStore(folder=tmp_path, limit_bytes=10**9)
    for unfreezing, params in SCHEDULES.items():
        plain, num_plain = measured(task, model, data, None, unfreezing=unfreezing, **params)
        served, num_served = measured(task, model, data, store, unfreezing=unfreezing, **params)
        for a, b in zip(plain, served, strict=True):
            assert b.train_loss == pytest.approx(a.train_loss, rel=2e-4), unfreezing
            assert b.validation_loss == pytest.approx(a.validation_loss, rel=2e-4), unfreezing
        assert num_served < num_plain, unfreezing
    again, num_again = measured(task, model, data, store, unfreezing="head_only")
    assert num_again == 0  # not even the first time: another trial had built them
    assert again[-1].epoch == 3


def bench_with(store, tmp_path, checkpoints, **params):
    bench = Bench(tmp_path / "data", checkpoints["vit"])
    data = TrainData(train=bench.data.train, validation=bench.data.validation, key="digits")
    params = {"learning_rate": 3e-3, "batch_size": 16} | params
    trial = TrialSpec(trial_id="t", number=0, model="m", params=params, seed=5, max_epochs=3)
    return train(trial, bench.task, bench.model, data, TrainOptions(), None, store)


def test_two_trials_on_stored_states_are_bit_for_bit_alike(checkpoints, tmp_path):
    store = ActivationStore(folder=tmp_path / "states", limit_bytes=10**9)
    first, second = (
        [facts(m) for m in bench_with(store, tmp_path, checkpoints, unfreezing="gradual")] for _ in range(2)
    )
    assert first == second


def test_augmented_and_reinitialised_trials_store_nothing(checkpoints, tmp_path):
    store = ActivationStore(folder=tmp_path / "states", limit_bytes=10**9)
    for params in ({"random_crop": 0.2}, {"num_reinitialised_blocks": 1}):
        next(bench_with(store, tmp_path, checkpoints, unfreezing="head_only", **params))
        assert not list((tmp_path / "states").glob("*.npy")), params


def test_the_least_recently_used_make_room_and_what_never_fits_is_not_stored(tmp_path):
    def fill(array):
        array[:] = 1.0

    store = ActivationStore(folder=tmp_path, limit_bytes=3 * 4200)
    for key in "abc":
        assert store.states(key, 1000, (1,), torch.float32, fill).sum() == 1000
        os.utime(tmp_path / f"{key}.npy", ns=(ord(key), ord(key)))
    store.states("a", 1000, (1,), torch.float32, fill)  # used again
    store.states("d", 1000, (1,), torch.float32, fill)
    assert sorted(path.stem for path in tmp_path.glob("*.npy")) == ["a", "c", "d"]
    assert store.states("e", 10**6, (1,), torch.float32, fill) is None


def test_a_full_disk_costs_the_cache_and_nothing_else(checkpoints, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    plain = [facts(m) for m in bench_with(None, tmp_path, checkpoints, unfreezing="head_only")]
    monkeypatch.setattr("os.posix_fallocate", full)
    store = ActivationStore(folder=tmp_path / "states", limit_bytes=10**9)
    assert [facts(m) for m in bench_with(store, tmp_path, checkpoints, unfreezing="head_only")] == plain
    assert [path.name for path in (tmp_path / "states").iterdir()] == [".lock"]


def test_wrong_states_are_noticed_before_they_are_used(checkpoints, tmp_path, caplog):
    store = ActivationStore(folder=tmp_path / "states", limit_bytes=10**9)
    plain = [facts(m) for m in bench_with(None, tmp_path, checkpoints, unfreezing="head_only")]
    list(bench_with(store, tmp_path, checkpoints, unfreezing="head_only"))
    for path in (tmp_path / "states").glob("*.npy"):
        array = np.load(path, mmap_mode="r+")
        array[:] = array[::-1].copy()
        array.flush()
    assert [facts(m) for m in bench_with(store, tmp_path, checkpoints, unfreezing="head_only")] == plain
    assert "would change results" in caplog.text


def test_a_dead_builders_leftover_is_cleared(tmp_path):
    (tmp_path / "x.partial").write_bytes(b"half")
    store = ActivationStore(folder=tmp_path, limit_bytes=10**6)
    store.states("k", 4, (2,), torch.float32, lambda array: array.fill(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "k.npy"]


def test_gradual_schedules_store_one_file_per_boundary_and_split(checkpoints, tmp_path):
    store = ActivationStore(folder=tmp_path / "states", limit_bytes=10**9)
    run = bench_with(store, tmp_path, checkpoints, unfreezing="gradual", epochs_per_stage=1)
    counts = [len(list((tmp_path / "states").glob("*.npy"))) for _ in run]
    assert counts[0] == 2
    assert all(later >= earlier for earlier, later in pairwise(counts))
