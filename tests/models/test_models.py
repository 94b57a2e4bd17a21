from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from sweeper.core.errors import InfeasibleError, InputError
from sweeper.core.head import HeadSpec
from sweeper.models.checkpoints import inspect
from sweeper.models.load import load
from sweeper.spec.study import ModelSpec

FAMILIES = [
    "bert",
    "roberta",
    "deberta",
    "electra",
    "distilbert",
    "resnet",
    "bottleneck",
    "vit",
    "convnext",
    "convnextv2",
    "swin",
]
TEXT = FAMILIES[:5]


def head(family, labels=("a", "b", "c")):
    kind = "SequenceClassification" if family in TEXT else "ImageClassification"
    return HeadSpec(auto_class=f"AutoModelFor{kind}", labels=tuple(labels))


def loaded(checkpoints, family, **more):
    return load(ModelSpec(name=family, checkpoint=str(checkpoints[family]), **more), head(family))


def inputs(family):
    torch.manual_seed(0)
    if family in TEXT:
        return {"input_ids": torch.randint(2, 60, (4, 12)), "attention_mask": torch.ones(4, 12, dtype=torch.long)}
    return {"pixel_values": torch.randn(4, 3, 16, 16)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_stands_in_exactly_one_group(checkpoints, family):
    model = loaded(checkpoints, family)
    names = [name for group in model.layout.groups for name in group]
    assert sorted(names) == sorted(name for name, _ in model.module.named_parameters())
    assert model.layout.num_blocks == 3
    assert all(model.layout.groups)
    assert any("classifier" in name for name in model.layout.groups[-1])
    assert all("embed" in name or "rel_" in name or "LayerNorm" in name for name in model.layout.groups[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_exactly_the_groups_above_a_frozen_one(checkpoints, family):
    model = loaded(checkpoints, family).instantiate(0, {})
    layout = loaded(checkpoints, family).layout
    parameters = dict(model.named_parameters())
    for group in range(3):
        for name in layout.groups[group]:
            parameters[name].requires_grad_(False)
    model.eval()(**inputs(family)).logits.square().sum().backward()
    for group in range(3, 5):
        assert any(parameters[n].grad is not None and parameters[n].grad.abs().sum() > 0 for n in layout.groups[group])


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_changes_training_outputs_and_not_evaluation(checkpoints, family):
    model = loaded(checkpoints, family)
    without, with_dropout = (model.instantiate(0, {"dropout": p}) for p in (0.0, 0.5))
    batch = inputs(family)
    with torch.no_grad():
        assert torch.equal(without.eval()(**batch).logits, with_dropout.eval()(**batch).logits)
        torch.manual_seed(1)
        first = with_dropout.train()(**batch).logits
        torch.manual_seed(2)
        second = with_dropout.train()(**batch).logits
    assert not torch.allclose(first, second)
    assert model.dropouts(with_dropout)["dropout"] == [0.5]


@pytest.mark.parametrize("family", ["convnext", "swin"])
def test_drop_path_drops_in_training_and_keeps_the_names_of_the_weights(checkpoints, family):
    model = loaded(checkpoints, family)
    module = model.instantiate(0, {"drop_path": 0.9})
    assert module.state_dict().keys() == model.module.state_dict().keys()
    batch = inputs(family)
    with torch.no_grad():
        assert torch.equal(module.eval()(**batch).logits, model.instantiate(0, {}).eval()(**batch).logits)
        outputs = [module.train()(**batch).logits for _ in range(5)]
    assert any(not torch.equal(outputs[0], other) for other in outputs[1:])


def test_a_dropout_that_the_family_does_not_have_is_infeasible(checkpoints):
    with pytest.raises(InfeasibleError, match="attention_dropout"):
        loaded(checkpoints, "resnet").instantiate(0, {"attention_dropout": 0.1})
    with pytest.raises(InfeasibleError, match="drop_path"):
        loaded(checkpoints, "bert").instantiate(0, {"drop_path": 0.1})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_comes_from_the_seed_and_the_body_from_the_checkpoint(checkpoints, family):
    model = loaded(checkpoints, family)
    before = torch.get_rng_state()
    a, again, b = (model.instantiate(seed, {}).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[name], again[name]) for name in a)
    changed = {name for name in a if not torch.equal(a[name], b[name])}
    assert changed
    assert all("classifier" in name or "pooler" in name for name in changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_gives_the_same_outputs_again(checkpoints, family, tmp_path):
    model = loaded(checkpoints, family)
    module = model.instantiate(3, {"dropout": 0.3}).eval()
    model.save(module.state_dict(), tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    with torch.no_grad():
        expected, found = module(**inputs(family)).logits, model.load_weights(tmp_path)(**inputs(family)).logits
    assert torch.equal(expected, found)
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "a", "1": "b", "2": "c"}


def refused(folder, **more):
    with pytest.raises(InputError) as caught:
        load(ModelSpec(name="m", checkpoint=str(folder), **more), head("vit"))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_broken_checkpoints_give_one_clear_line(checkpoints, tmp_path):
    def copy(name):
        return shutil.copytree(checkpoints["vit"], tmp_path / name)

    assert "no such folder" in refused(tmp_path / "nothing")
    empty = copy("empty")
    (empty / "model.safetensors").unlink()
    assert "no weights" in refused(empty)
    pickled = copy("pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert "`allow_bin: true`" in refused(pickled)
    assert load(ModelSpec(name="m", checkpoint=str(pickled), allow_bin=True), head("vit")).layout.num_blocks == 3
    damaged = copy("damaged")
    (damaged / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0garbage")
    assert "must load with AutoModelForImageClassification" in refused(damaged)
    (copy("unnamed") / "config.json").write_text("{}")
    assert "must name a model_type" in refused(tmp_path / "unnamed")
    code = copy("code")
    config = json.loads((code / "config.json").read_text()) | {"auto_map": {"AutoModel": "x.Y"}}
    (code / "config.json").write_text(json.dumps(config))
    assert "`trust_remote_code: true`" in refused(code)
    blind = copy("blind")
    (blind / "preprocessor_config.json").unlink()
    assert "an image processor" in refused(blind)


@pytest.mark.parametrize(
    ("make", "positions"),
    [
        (lambda size: hf.BertForSequenceClassification(hf.BertConfig(max_position_embeddings=40, **size)), 40),
        (lambda size: hf.RobertaForSequenceClassification(hf.RobertaConfig(max_position_embeddings=42, **size)), 40),
    ],
)
def test_texts_are_cut_to_the_positions_of_the_model_whatever_the_tokenizer_was_saved_with(tmp_path, make, positions):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64, "pad_token_id": 1}
    make(size).save_pretrained(tmp_path)
    unlimited = tiny.tokenizer()
    unlimited.model_max_length = int(1e30)
    unlimited.save_pretrained(tmp_path)
    model = load(ModelSpec(name="m", checkpoint=str(tmp_path)), head("bert"))
    assert model.preprocessor.model_max_length == positions
    model.module(input_ids=torch.full((1, positions), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model.module(input_ids=torch.full((1, positions + 1), 5))


def test_the_fingerprint_follows_the_weights(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["vit"], tmp_path / "vit")
    spec = ModelSpec(name="m", checkpoint=str(folder))
    before = inspect(spec).fingerprint
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + np.float32(1e-3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert inspect(spec).fingerprint != before


def test_blocks_can_be_named_and_a_wrong_name_lists_the_right_ones(checkpoints):
    layout = loaded(checkpoints, "resnet", blocks="resnet.encoder.stages").layout
    assert layout.num_blocks == 2
    with pytest.raises(InputError, match=r"resnet\.encoder\.stages"):
        loaded(checkpoints, "resnet", blocks="resnet.nothing")
