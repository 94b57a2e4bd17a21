"""Lanes that share a GPU: what a probe measures, on a simulated device, and what follows from it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from trainbench import Bench

from sweeper.core.errors import InputError
from sweeper.core.space import Categorical, Float, Int, SearchSpace
from sweeper.engine import packing
from sweeper.engine.cluster import capacity
from sweeper.engine.packing import Packing, hungriest, measured_packing
from sweeper.spec.load import load_study
from sweeper.train.footprint import allocator_share, peak_bytes
from sweeper.train.options import TrainOptions
from sweeper.workflows import execute

GB = 10**9


@dataclass
class SimulatedMemory:
    """A device whose allocator holds a gigabyte for each example of the largest batch that it has seen."""

    total_bytes: int = 80 * GB
    sizes: list[int] = field(default_factory=list)

    def reset(self):
        self.sizes.clear()

    def peak_bytes(self):
        return max(self.sizes) * GB

    def context_bytes(self):
        return GB // 2


def test_as_many_lanes_share_a_gpu_as_fit_with_a_margin():
    small = Packing(peaks={"a": 4 * GB, "b": 2 * GB}, context_bytes=GB // 2, total_bytes=80 * GB)
    assert small.lanes == 13  # 76 / (4 * 1.25 + .5)
    assert small.lanes * small.share <= 1 < (small.lanes + 1) * small.share
    assert Packing(peaks={"a": 70 * GB}, context_bytes=GB, total_bytes=80 * GB).share == 1.0
    assert Packing(peaks={"a": 90 * GB}, context_bytes=GB, total_bytes=80 * GB).lanes == 1, "smaller batches will do"


def test_the_probe_trains_the_hungriest_configuration_of_a_space():
    space = SearchSpace(
        parameters=(
            Float(name="learning_rate", low=1e-5, high=1e-3),
            Categorical(name="batch_size", choices=(16, 64, 32)),
            Categorical(name="unfreezing", choices=("head_only", "full", "last_blocks")),
            Int(name="num_unfrozen_blocks", low=1, high=2, when={"unfreezing": ("last_blocks",)}),
        ),
        default={
            "learning_rate": 1e-4,
            "batch_size": 16,
            "unfreezing": "last_blocks",
            "num_unfrozen_blocks": 1,
        },
    )
    assert hungriest(space) == {"learning_rate": 1e-4, "batch_size": 64, "unfreezing": "full"}
    assert (
        hungriest(SearchSpace(parameters=(Int(name="batch_size", low=8, high=24),), default={"batch_size": 8}))[
            "batch_size"
        ]
        == 24
    )


@pytest.fixture(scope="module")
def bench(checkpoints, tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("vit") / "data", checkpoints["vit"])


def test_a_probe_takes_one_step_and_one_evaluation_of_the_largest_batch(bench, monkeypatch):
    memory = SimulatedMemory()
    kind = type(bench.model.module)
    forward = kind.forward

    def allocating(self, *args, **kwargs):
        memory.sizes.append(len(kwargs["pixel_values"]))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", allocating)
    options = TrainOptions(eval_batch_size=8)
    assert peak_bytes(bench.task, bench.model, bench.data, {"batch_size": 24}, options, memory) == 24 * GB
    assert memory.sizes == [24, 8]
    assert peak_bytes(bench.task, bench.model, bench.data, {"batch_size": 4}, options, memory) == 8 * GB


def test_a_probe_that_runs_out_of_memory_finds_the_micro_batch_that_fits(bench, monkeypatch):
    memory = SimulatedMemory(total_bytes=10 * GB)
    kind = type(bench.model.module)
    forward = kind.forward

    def allocating(self, *args, **kwargs):
        if len(kwargs["pixel_values"]) * GB > memory.total_bytes:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")
        memory.sizes.append(len(kwargs["pixel_values"]))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", allocating)
    found = peak_bytes(bench.task, bench.model, bench.data, {"batch_size": 24}, TrainOptions(), memory)
    assert memory.sizes[:4] == [6, 6, 6, 6], "24 halved until it fits, then the whole batch in four parts"
    assert found <= memory.total_bytes


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.yaml").write_text(
        "schema: 1\nname: packed\n"
        "task: {type: image-classification, data: {train: 'builtin:digits'}}\n"
        "models: [{name: a, checkpoint: a}]\n"
        "training: {resources_per_worker: {CPU: 2, GPU: auto}, precision: fp32}\n"
    )
    spec = load_study(tmp_path / "study.yaml", [f"storage_path={tmp_path / 'results'}"])
    space = SearchSpace(parameters=(Int(name="batch_size", low=8, high=24),), default={"batch_size": 8})
    return SimpleNamespace(spec=spec, spaces={"a": space}, paths=execute_paths(spec))


def execute_paths(spec):
    from sweeper.workflows.study import result_paths

    return result_paths(spec)


def test_a_study_gets_the_lanes_that_a_probe_allows(study, monkeypatch):
    node = {"Alive": True, "Resources": {"CPU": 16, "GPU": 2}, "Labels": {}}
    monkeypatch.setattr("sweeper.engine.cluster.ray.nodes", lambda: [node])
    asked = {}

    def measured(config, probes, resources, labels, interrupted):
        asked.update(device=config.options.device, share=config.gpu_share, probes=probes, **resources)
        return Packing(peaks={"a": 16 * GB}, context_bytes=GB, total_bytes=80 * GB)

    monkeypatch.setattr(execute, "measured_packing", measured)
    lanes = execute.study_lanes(study)
    assert asked == {"device": "cuda", "share": 1.0, "probes": {"a": {"batch_size": 24}}, "CPU": 2, "GPU": 1.0}
    (group,) = lanes.groups
    assert group.shape.resources_per_worker == {"CPU": 2, "GPU": 0.3333}
    config = group.make_worker.__self__
    assert (config.gpu_share, config.context_bytes) == (0.3333, GB)
    assert capacity(group.shape).now == lanes.count == 6
    assert execute.study_lanes(study, {"a": 4}).count == 4, "no lane starts for which no trial is left"
    monkeypatch.setattr(execute, "measured_packing", lambda *_: None)
    assert execute.study_lanes(study).count == 2, "a probe that fails costs the packing and nothing else"


@pytest.fixture
def probe(monkeypatch):
    """A probe that Ray checks the options of, and then never starts."""
    asked = {}
    submitted = lambda self, args, kwargs, **options: asked.update(options) or "reference"  # noqa: E731
    monkeypatch.setattr("ray.remote_function.RemoteFunction._remote", submitted)
    monkeypatch.setattr(packing.ray, "wait", lambda references, timeout: ([], references))
    monkeypatch.setattr(packing.ray, "cancel", lambda reference, force: asked.update(cancelled=reference))
    return asked


def test_a_probe_that_dies_is_a_warning(probe, monkeypatch, caplog):
    def dies(_):
        raise packing.ray.exceptions.WorkerCrashedError

    monkeypatch.setattr(packing.ray, "wait", lambda references, timeout: (references, []))
    monkeypatch.setattr(packing.ray, "get", dies)
    resources = {"CPU": 1.0, "GPU": 1.0, "memory": 5e9, "licence": 1.0}
    with caplog.at_level(logging.WARNING):
        assert measured_packing(None, {}, resources, {"zone": "a"}, lambda: False) is None
    assert "a GPU of its own" in caplog.text
    assert (probe["num_gpus"], probe["resources"], probe["label_selector"]) == (1, {"licence": 1.0}, {"zone": "a"})


def test_a_probe_is_not_waited_for_when_the_run_is_stopped(probe, monkeypatch, caplog):
    stops = iter([False, False, True])
    with caplog.at_level(logging.WARNING):
        assert measured_packing(None, {}, {"CPU": 1.0, "GPU": 1.0}, {}, lambda: next(stops)) is None
    assert probe["cancelled"] == "reference"
    monkeypatch.setattr(packing, "UPSCALING_SECONDS", 0)
    assert measured_packing(None, {}, {"CPU": 1.0, "GPU": 1.0}, {}, lambda: False) is None, "nor for ever"


def test_an_allocator_is_kept_to_its_lanes_share_whatever_the_neighbours_hold():
    small = Packing(peaks={"a": 4 * GB}, context_bytes=GB // 2, total_bytes=80 * GB)
    own = allocator_share(small.share, small.context_bytes, small.total_bytes)
    assert own * small.total_bytes == pytest.approx(80 * GB * small.share - GB / 2)
    assert own * small.total_bytes > small.peaks["a"] * 1.25
    assert allocator_share(0.001, GB, 80 * GB) == 0.01


def test_a_probe_measures_every_model_and_what_a_process_takes_beside_it():
    worker = SimpleNamespace(peak_bytes=lambda model, params, memory: params["batch_size"] * memory.total_bytes // 100)
    config = SimpleNamespace(start=lambda: worker)
    found = packing._probe(config, {"a": {"batch_size": 5}, "b": {"batch_size": 10}}, SimulatedMemory)
    assert found == Packing(peaks={"a": 4 * GB, "b": 8 * GB}, context_bytes=GB // 2, total_bytes=80 * GB)
    assert found.lanes == 7


@pytest.mark.parametrize(
    ("training", "rule"),
    [
        ("{resources_per_worker: {CPU: auto}}", "only GPU"),
        ("{num_workers: 2, resources_per_worker: {GPU: auto}}", "one"),
    ],
)
def test_only_the_gpu_of_a_single_worker_is_packed(tmp_path, training, rule):
    (tmp_path / "study.yaml").write_text(
        "schema: 1\nname: packed\n"
        "task: {type: image-classification, data: {train: 'builtin:digits'}}\n"
        f"models: [{{name: a, checkpoint: a}}]\ntraining: {training}\n"
    )
    with pytest.raises(InputError, match=f"resources_per_worker.*{rule}"):
        load_study(tmp_path / "study.yaml")
