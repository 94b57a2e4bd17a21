"""Augmentation, patience, balance and re-initialised blocks: what they do, and that chance never leaks."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from trainbench import Bench, facts

from sweeper.core.errors import InfeasibleError, MismatchError
from sweeper.spec.space import HYPERPARAMETERS
from sweeper.tasks.base import Batch
from sweeper.train.augment import Augmentation
from sweeper.train.options import TrainOptions
from sweeper.train.settings import Settings

ALL = {"random_crop": 0.2, "horizontal_flip": 0.5, "mixup_alpha": 0.4, "cutmix_alpha": 1.0}


@pytest.fixture(scope="module")
def bench(checkpoints, tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("vit") / "data", checkpoints["vit"])


def test_spaces_and_training_know_the_same_hyperparameters():
    assert set(HYPERPARAMETERS) == {field.name for field in dataclasses.fields(Settings)}


def test_an_augmented_run_resumes_bit_for_bit_and_ignores_micro_batches(bench, tmp_path):
    whole = [facts(m) for m in bench.run(**ALL)]
    assert whole != [facts(m) for m in bench.run()]
    first = bench.run(**ALL)
    head = [facts(next(first)) for _ in range(2)]
    first.save_snapshot(tmp_path)
    np.random.rand(10)  # noqa: NPY002 - other work in the process must not matter
    assert head + [facts(m) for m in bench.run(resume=tmp_path, **ALL)] == whole
    parts = [m.train_loss for m in bench.run(options=TrainOptions(micro_batch_size=5), **ALL)]
    assert parts == pytest.approx([w[1] for w in whole], rel=1e-3)
    assert first.effective["augmentation"] == ALL


@pytest.mark.parametrize("name", ["mixup_alpha", "cutmix_alpha", "random_crop", "horizontal_flip"])
def test_every_augmentation_changes_training(bench, name):
    changed = next(bench.run(**{name: 0.5})).train_loss
    assert changed != pytest.approx(next(bench.run()).train_loss, rel=1e-6)


def test_augmentation_leaves_validation_alone(bench):
    run = bench.run(learning_rate=0.0, **ALL)
    plain = bench.run(learning_rate=0.0)
    assert next(run).validation_loss == next(plain).validation_loss


def batch_of(pixels):
    return Batch(inputs={"pixel_values": pixels}, targets=torch.zeros(len(pixels)))


def test_crops_shift_flips_mirror_and_mixing_keeps_shares():
    pixels = torch.arange(4 * 3 * 8 * 8, dtype=torch.float32).reshape(4, 3, 8, 8)
    flip = Augmentation(horizontal_flip=1.0)
    at = np.arange(4)
    assert torch.equal(flip.apply(batch_of(pixels), flip.draw(4, 0, 0, 0), at).inputs["pixel_values"], pixels.flip(-1))
    crop = Augmentation(random_crop=0.25)
    draws = crop.draw(4, 0, 0, 0)
    moved = crop.apply(batch_of(pixels), draws, at).inputs["pixel_values"]
    down, right = np.rint(draws.shifts[0] * 8).astype(int)
    rows, columns = np.clip(np.arange(8) + down, 0, 7), np.clip(np.arange(8) + right, 0, 7)
    assert torch.equal(moved[0], pixels[0][:, rows][:, :, columns])
    ones, zeros = batch_of(torch.ones(4, 3, 16, 16)), batch_of(torch.zeros(4, 3, 16, 16))
    for seed in range(20):
        for kind in ("mixup_alpha", "cutmix_alpha"):
            mixing = Augmentation(**{kind: 1.0})
            mixed, share = mixing.mix(ones, zeros, mixing.draw(4, seed, 0, 0))
            assert mixed.inputs["pixel_values"].mean().item() == pytest.approx(share, abs=1e-5)
    draws = [mixing.draw(4, 0, epoch, index).kept for epoch, index in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert draws[0] == draws[1] != draws[2] != draws[3]


def test_dropped_tokens_are_hidden_but_never_the_first_and_the_last():
    mask = torch.zeros(50, 20, dtype=torch.long)
    for row in range(50):
        mask[row, : 2 + row % 18] = 1
    drop = Augmentation(token_dropout=0.5)
    batch = Batch(inputs={"input_ids": mask, "attention_mask": mask}, targets=torch.zeros(50))
    found = drop.apply(batch, drop.draw(50, 1, 0, 0), np.arange(50)).inputs["attention_mask"]
    lengths = mask.sum(1)
    assert (found[:, 0] == 1).all()
    assert (found[torch.arange(50), lengths - 1] == 1).all()
    inner = (lengths - 2).sum().item()
    assert 0.4 < (mask - found).sum().item() / inner < 0.6
    assert ((mask - found) >= 0).all()


def test_deleted_tokens_leave_no_gap_and_take_their_segments_with_them():
    lengths = torch.tensor([20, 12, 3, 2, 20])
    mask = (torch.arange(20) < lengths[:, None]).long()
    ids = (torch.arange(5)[:, None] * 100 + torch.arange(20) + 1) * mask + 7 * (1 - mask)
    batch = Batch(
        inputs={"input_ids": ids, "token_type_ids": ids % 2 * mask, "attention_mask": mask},
        targets=torch.zeros(5),
        fill={"input_ids": 7, "token_type_ids": 0},
    )
    delete = Augmentation(token_deletion=0.4)
    draws = delete.draw(5, 1, 0, 0)
    found = delete.apply(batch, draws, np.arange(5)).inputs
    kept = found["attention_mask"].sum(1)
    assert 0.3 < 1 - (kept - 2).sum().item() / (lengths - 2).sum().item() < 0.5
    for row, count in enumerate(kept.tolist()):
        tokens = found["input_ids"][row, :count].tolist()
        assert tokens == sorted(set(tokens) & set(ids[row, : lengths[row]].tolist()))  # in their order, none twice
        assert (tokens[0], tokens[-1]) == (ids[row, 0], ids[row, lengths[row] - 1])
        assert found["token_type_ids"][row, :count].tolist() == [token % 2 for token in tokens]
        assert (found["input_ids"][row, count:] == 7).all()
        assert (found["attention_mask"][row, :count] == 1).all()
    alone = delete.apply(replace(batch, inputs={k: v[3:] for k, v in batch.inputs.items()}), draws, np.arange(3, 5))
    assert torch.equal(alone.inputs["input_ids"], found["input_ids"][3:])  # whatever worker it falls to
    with pytest.raises(InfeasibleError, match="token_deletion: the task's batches do not say"):
        delete.apply(replace(batch, fill=None), draws, np.arange(5))


def test_patience_stops_training_but_not_the_count_of_epochs(bench, tmp_path):
    run = bench.run(learning_rate=0.0, patience=2, max_epochs=6)  # nothing can become better
    measured = [facts(m) for m in run]
    assert [m[0] for m in measured] == [1, 2, 3, 4, 5, 6]
    assert measured[2][1:] == measured[3][1:] == measured[5][1:]
    assert measured[1][1] != measured[2][1]  # the third epoch still ran, in another order of examples
    assert run.effective["patience"] == 2
    first = bench.run(learning_rate=0.0, patience=2, max_epochs=6)
    head = [facts(next(first)) for _ in range(4)]
    first.save_snapshot(tmp_path)
    again = bench.run(resume=tmp_path, learning_rate=0.0, patience=2, max_epochs=6)
    assert head + [facts(m) for m in again] == measured


def test_a_trials_own_balance_wins_over_the_studys(bench):
    weighted = bench.run(balance="class-weights")
    assert weighted.effective["balance"] == "class-weights"
    assert [facts(m) for m in weighted] == [facts(m) for m in bench.run(options=TrainOptions(balance="class-weights"))]
    assert bench.run(balance="none", options=TrainOptions(balance="sampler")).effective["balance"] == "none"
    with pytest.raises(InfeasibleError, match="balance: must be one of"):
        bench.run(balance="weights")


def test_reinitialised_blocks_are_the_upper_ones_and_are_read_back(bench, monkeypatch):
    run = bench.run(num_reinitialised_blocks=2)
    assert run.effective["num_reinitialised_blocks"] == 2
    live, pristine = run._module.state_dict(), bench.model.module.state_dict()
    for index, block in enumerate(bench.model.layout.blocks):
        same = all(torch.equal(live[name], pristine[name]) for name in live if name.startswith(f"{block}."))
        assert same == (index == 0)
    with pytest.raises(InfeasibleError, match="has 3 blocks, got 4"):
        bench.run(num_reinitialised_blocks=4)
    plain = type(bench.model).instantiate
    monkeypatch.setattr(
        type(bench.model), "instantiate", lambda self, seed, dropouts, count=0: plain(self, seed, dropouts)
    )
    with pytest.raises(MismatchError, match="num_reinitialised_blocks: asked 2, runs 0"):
        bench.run(num_reinitialised_blocks=2)


def test_what_does_nothing_for_a_task_is_refused(bench):
    with pytest.raises(InfeasibleError, match="token_dropout: applies to text only"):
        bench.run(token_dropout=0.1)
    assert bench.run(token_dropout=0.0)
