from __future__ import annotations

import itertools
import math
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from trainbench import Bench, facts

from sweeper.core.errors import DivergedError, InfeasibleError, MismatchError
from sweeper.train import loop
from sweeper.train.batches import epoch_batches
from sweeper.train.optim import schedule
from sweeper.train.options import TrainOptions
from sweeper.train.settings import Settings
from sweeper.train.unfreezing import stages

SCHEDULES = {
    "full": {"layer_decay": 0.8},
    "head_only": {},
    "last_blocks": {"num_unfrozen_blocks": 2},
    "gradual": {"epochs_per_stage": 1},
    "head_then_full": {"head_fraction": 0.5, "head_learning_rate": 1e-2},
    "lora": {"lora_rank": 2, "lora_dropout": 0.1, "num_adapted_blocks": 2},
}


@pytest.fixture(scope="module")
def bench(checkpoints, tmp_path_factory):
    return {
        name: Bench(tmp_path_factory.mktemp(name) / "data", checkpoints[name]) for name in ("vit", "resnet", "convnext")
    }


@pytest.mark.parametrize("name", ["vit", "resnet"])
@pytest.mark.parametrize("unfreezing", SCHEDULES)
def test_an_interrupted_run_repeats_an_uninterrupted_one_bit_for_bit(bench, tmp_path, name, unfreezing):
    options = {"unfreezing": unfreezing, "dropout": 0.2, **SCHEDULES[unfreezing]}
    whole = [facts(m) for m in bench[name].run(**options)]
    for cut in (1, 2, 3):
        first = bench[name].run(**options)
        head = [facts(next(first)) for _ in range(cut)]
        folder = tmp_path / f"{cut}"
        folder.mkdir()
        first.save_snapshot(folder)
        torch.rand(100)  # other work in the process must not matter
        second = bench[name].run(resume=folder, **options)
        assert second.epoch == cut
        assert head + [facts(m) for m in second] == whole


def test_two_runs_in_one_process_do_not_disturb_each_other(bench):
    alone = [facts(m) for m in bench["vit"].run(dropout=0.3)]
    a, b = bench["vit"].run(dropout=0.3), bench["resnet"].run(dropout=0.3)
    mixed = []
    for _ in range(4):
        mixed.append(facts(next(a)))
        next(b)
    assert mixed == alone


@pytest.mark.parametrize("unfreezing", SCHEDULES)
def test_exactly_the_trainable_groups_move(bench, unfreezing):
    run = bench["vit"].run(unfreezing=unfreezing, weight_decay=0.1, max_epochs=2, **SCHEDULES[unfreezing])
    before = {name: tensor.clone() for name, tensor in run._module.state_dict().items()}
    next(run)
    trainable = run.effective["stages"][0]["trainable_groups"]
    for group, names in enumerate(run._layout.groups):
        moved = [not torch.equal(before[name], run._module.state_dict()[name]) for name in names]
        assert any(moved) == (group in trainable), (group, names)


def test_frozen_batch_norm_keeps_its_statistics(bench):
    run = bench["resnet"].run(unfreezing="head_only")
    before = {name: buffer.clone() for name, buffer in run._module.named_buffers()}
    next(run)
    assert all(torch.equal(before[name], buffer) for name, buffer in run._module.named_buffers())


def test_training_learns(bench):
    scores = [m.metrics["accuracy"] for m in bench["resnet"].run(max_epochs=6, learning_rate=1e-2)]
    assert max(scores) > 0.8


def test_schedules_equal_published_values_and_span_the_whole_budget():
    peak = 0.01
    found = [peak * schedule("slanted_triangular", t, 100, 0.1) for t in (0, 10, 55, 100)]
    assert found == pytest.approx([0.0003125, 0.01, 0.005156, 0.0003125], rel=1e-3)
    for kind in ("linear", "cosine"):
        values = [schedule(kind, t, 100, 0.1) for t in range(101)]
        assert values[9] == 1.0
        assert values[100] == pytest.approx(0.0)
        assert all(a >= b for a, b in itertools.pairwise(values[9:]))


def test_layer_decay_and_gradual_rates_follow_their_papers():
    electra = stages(Settings(learning_rate=1.0, layer_decay=0.5), 3, 4)[0].rates
    assert electra == {4: 1.0, 3: 0.25, 2: 0.125, 1: 0.0625, 0: 0.03125}
    gradual = stages(Settings(learning_rate=1.0, unfreezing="gradual", epochs_per_stage=2), 3, 5)
    assert [stage.from_epoch for stage in gradual] == [0, 2, 4]
    assert gradual[2].rates == pytest.approx({4: 1.0, 3: 1 / 2.6, 2: 1 / 2.6**2})


def test_more_blocks_than_there_are_and_batches_larger_than_the_data_are_infeasible(bench):
    with pytest.raises(InfeasibleError, match="the model has 3 blocks, got 4"):
        bench["vit"].run(unfreezing="last_blocks", num_unfrozen_blocks=4)
    with pytest.raises(InfeasibleError, match="batch_size: 64"):
        bench["vit"].run(batch_size=64)
    with pytest.raises(InfeasibleError, match="no such hyperparameter"):
        bench["vit"].run(learning_rat=1.0)
    with pytest.raises(InfeasibleError, match="dropout"):
        bench["vit"].run(dropout=1.5)


def test_a_loss_that_is_not_finite_ends_the_trial(bench):
    run = bench["vit"].run(learning_rate=100.0, optimizer="sgd", max_grad_norm=0.0, warmup_ratio=0.0)
    with pytest.raises(DivergedError, match="not finite"):
        list(run)


@pytest.mark.parametrize(
    ("sabotage", "words"),
    [
        (lambda run: run._optimizer.param_groups[0].update(lr=1.0), "learning_rate"),
        (lambda run: next(run._module.parameters()).requires_grad_(False), "frozen parameters|in the optimizer"),
        (lambda run: run._optimizer.param_groups[0].update(weight_decay=0.7), "weight_decay"),
    ],
)
def test_what_runs_is_compared_with_what_was_asked(bench, sabotage, words):
    run = bench["vit"].run()
    sabotage(run)
    live = loop.read_stage(run._optimizer, run._module, bench["vit"].model.layout)
    with pytest.raises(MismatchError, match=words):
        loop.check_stage(live, run._settings, run._stages[0])


def test_a_loader_with_another_batch_size_is_noticed(bench, monkeypatch):
    monkeypatch.setattr(loop, "epoch_batches", lambda lengths, size, *rest: epoch_batches(lengths, size // 2, *rest))
    with pytest.raises(MismatchError, match="batch_size: asked 16, runs 8"):
        bench["vit"].run()


def test_out_of_memory_halves_the_micro_batch_and_goes_on(bench, monkeypatch):
    run = bench["vit"].run(dropout=0.0)
    plain = [facts(m) for m in bench["vit"].run(dropout=0.0)]
    batch = type(bench["vit"].data.train).batch

    def small_memory(self, rows):
        if len(rows) == 16 or len(rows) == 8:
            raise RuntimeError("CUDA error: out of memory")
        return batch(self, rows)

    monkeypatch.setattr(type(bench["vit"].data.train), "batch", small_memory)
    run._options = TrainOptions(eval_batch_size=4)
    first = next(run)
    assert run.micro_batch_size == 4
    assert first.train_loss == pytest.approx(plain[0][1], rel=1e-4)
    monkeypatch.setattr(type(bench["vit"].data.train), "batch", lambda self, rows: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(InfeasibleError, match="micro-batch of one"):
        run._train_epoch()


@pytest.mark.parametrize(
    ("method", "words"), [("step", "no room for weights, gradients and moments"), ("to", "no room for the weights")]
)
def test_a_model_that_no_batch_size_could_fit_is_infeasible(bench, monkeypatch, method, words):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    owner = torch.optim.AdamW if method == "step" else torch.nn.Module
    monkeypatch.setattr(owner, method, full)
    with pytest.raises(InfeasibleError, match=words):
        next(bench["vit"].run())


def test_accumulation_does_not_change_the_gradients(bench):
    whole = [facts(m) for m in bench["vit"].run(dropout=0.0)]
    parts = [facts(m) for m in bench["vit"].run(dropout=0.0, options=TrainOptions(micro_batch_size=3))]
    assert [p[1] for p in parts] == pytest.approx([w[1] for w in whole], rel=1e-3)


def test_an_epoch_holds_every_example_once_in_an_order_of_its_own():
    lengths = np.random.default_rng(0).integers(1, 50, 103)
    first, again, other = (epoch_batches(lengths, 8, 1, epoch) for epoch in (0, 0, 1))
    assert sorted(np.concatenate(first)) == list(range(103))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def _worker(rank, world, port, folder, checkpoint, unfreezing, strategy, checkpointing, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    bench = Bench(folder / f"{rank}", checkpoint)
    parts = {"eval_batch_size": 3, "micro_batch_size": 3}  # that do not come out even
    options = TrainOptions(strategy=strategy, gradient_checkpointing=checkpointing, **parts)
    asked = {"unfreezing": unfreezing, "dropout": 0.0, "options": options, **SCHEDULES[unfreezing]}
    run = bench.run(**asked)
    losses = [(m.train_loss, m.validation_loss) for m in (next(run), next(run))]
    run.gather()
    if rank == 0:
        (folder / "snapshot").mkdir()
        run.save_snapshot(folder / "snapshot")
    torch.distributed.barrier()
    run = bench.run(resume=folder / "snapshot", **asked)
    assert (type(next(run._live.parameters())).__name__ == "DTensor") == (strategy == "fsdp")
    assert run.effective["gradient_checkpointing"] == checkpointing
    losses += [(m.train_loss, m.validation_loss) for m in run]
    queue.put((rank, losses, sum(p.double().sum().item() for p in run._module.parameters())))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("unfreezing", "strategy", "checkpointing"),
    [("gradual", "ddp", False), ("head_then_full", "ddp", True), ("gradual", "fsdp", True)],
)
def test_two_workers_train_like_one_over_every_stage_and_a_snapshot(
    bench, checkpoints, tmp_path, unfreezing, strategy, checkpointing
):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    arguments = (2, port, tmp_path, checkpoints["vit"], unfreezing, strategy, checkpointing, queue)
    workers = [context.Process(target=_worker, args=(rank, *arguments)) for rank in range(2)]
    for worker in workers:
        worker.start()
    results = sorted(queue.get(timeout=240) for _ in workers)
    for worker in workers:
        worker.join(30)
    single = [
        (m.train_loss, m.validation_loss)
        for m in bench["vit"].run(unfreezing=unfreezing, dropout=0.0, **SCHEDULES[unfreezing])
    ]
    assert results[0][1] == results[1][1]
    assert results[0][2] == results[1][2]
    assert np.allclose(results[0][1], single, rtol=1e-3)
    assert math.isfinite(single[-1][0])


def test_gradient_checkpointing_changes_no_loss(bench):
    kept = [facts(m) for m in bench["vit"].run(dropout=0.2, max_epochs=2)]
    again = bench["vit"].run(dropout=0.2, max_epochs=2, options=TrainOptions(gradient_checkpointing=True))
    assert again.effective["gradient_checkpointing"]
    assert [m[1:3] for m in map(facts, again)] == [pytest.approx(m[1:3], rel=1e-5) for m in kept]


def test_a_family_without_gradient_checkpointing_is_infeasible_with_it(bench):
    with pytest.raises(InfeasibleError, match="ResNetForImageClassification does not provide for it"):
        bench["resnet"].run(options=TrainOptions(gradient_checkpointing=True))
