"""LoRA: what trains, what is read back, and what is saved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from trainbench import Bench

from sweeper.core.errors import InfeasibleError, MismatchError
from sweeper.core.selection import best_measurement
from sweeper.search.effective import effective_key
from sweeper.train.evaluate import predict
from sweeper.train.options import TrainOptions
from sweeper.train.readback import check_lora

LORA = {"unfreezing": "lora", "lora_rank": 4, "lora_alpha": 12.0, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def bench(checkpoints, tmp_path_factory):
    return {name: Bench(tmp_path_factory.mktemp(name) / "data", checkpoints[name]) for name in ("vit", "resnet")}


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_adapters_train_and_the_checkpoint_stays(bench, name):
    run = bench[name].run(**LORA, weight_decay=0.1)
    losses = [m.train_loss for m in run]
    assert losses[-1] < losses[0]
    blocks = tuple(f"{block}." for block in bench[name].model.layout.blocks)
    before, after = bench[name].model.module.state_dict(), run._module.state_dict()
    kept = {key.replace(".base_layer.", "."): tensor for key, tensor in after.items() if ".lora_" not in key}
    assert before.keys() == kept.keys()
    weights = [key for key in before if key.startswith(blocks) and "running" not in key and "num_batches" not in key]
    assert all(torch.equal(before[key], kept[key]) for key in weights)
    assert run.effective["lora"]["rank"] == 4
    assert run.effective["lora"]["alpha"] == 12.0


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_what_is_saved_is_a_plain_checkpoint_that_gives_the_same(bench, name, tmp_path):
    run = bench[name].run(**LORA)
    best = best_measurement(list(run), bench[name].task.objective)
    run.save_best(tmp_path)
    found = predict(bench[name].model, tmp_path, bench[name].task, bench[name].data.validation, TrainOptions())
    assert found.scores == pytest.approx(best.metrics, abs=1e-5)


def test_the_adapter_beside_it_is_what_peft_loads(bench, tmp_path):
    from peft import PeftModel

    run = bench["vit"].run(**LORA)
    list(run)
    run.save_best(tmp_path)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (Path(config["base_model_name_or_path"]) / "model.safetensors").exists(), "where the base model is found"
    adapted = PeftModel.from_pretrained(bench["vit"].model.instantiate(5, {}), tmp_path / "adapter").eval()
    merged = bench["vit"].model.load_weights(tmp_path)
    inputs = bench["vit"].data.validation.batch(np.arange(8)).inputs
    with torch.no_grad():
        assert torch.allclose(adapted(**inputs).logits, merged(**inputs).logits, atol=1e-5)


def test_adapters_other_than_asked_are_noticed(bench):
    run = bench["vit"].run(**LORA)
    layer = next(part for part in run._module.modules() if hasattr(part, "lora_A"))
    layer.scaling["default"] *= 2
    with pytest.raises(MismatchError, match=r"lora_alpha: asked 12\.0"):
        check_lora(run._module, run._settings)


def test_adapters_that_cannot_be_are_infeasible(bench):
    with pytest.raises(InfeasibleError, match="the model has 3 blocks, got 4"):
        bench["vit"].run(unfreezing="lora", num_adapted_blocks=4)
    with pytest.raises(InfeasibleError, match="lora_rank"):
        bench["vit"].run(unfreezing="lora", lora_rank=0)
    with pytest.raises(InfeasibleError, match="drawn anew must train"):
        bench["vit"].run(unfreezing="lora", num_reinitialised_blocks=1)


def test_configurations_that_adapt_alike_are_one():
    lora = {"unfreezing": "lora", "learning_rate": 1e-3, "lora_rank": 4}
    assert effective_key(lora, 4) == effective_key({**lora, "lora_alpha": 8.0, "lora_learning_rate": 1e-3}, 4)
    assert effective_key(lora, 4) != effective_key({**lora, "lora_rank": 8}, 4)
    full = {"unfreezing": "full", "learning_rate": 1e-3}
    assert effective_key(full, 4) == effective_key({**full, "lora_rank": 4}, 4)
