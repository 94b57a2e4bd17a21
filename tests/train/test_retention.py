"""What a model retains of something else, before and after fine-tuning."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
import transformers as hf

from sweeper.core.errors import InfeasibleError, InputError
from sweeper.core.head import HeadSpec
from sweeper.data.prepare import load_prepared, retention_folder
from sweeper.models.load import load
from sweeper.spec.load import load_study
from sweeper.spec.study import ModelSpec
from sweeper.train.retention import ProbeData, retained
from sweeper.workflows.study import provisional

CLASSES = HeadSpec(auto_class="AutoModelForSequenceClassification", labels=("a", "b"))


def texts(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    words = [" ".join([f"w{3 + label}", *(f"w{i}" for i in rng.integers(10, 60, 3))]) for label in labels]
    ids = [str(i) for i in range(count)]
    return pa.table({"example_id": ids, "text": words, "label": pa.array(labels, pa.int32())})


def saved(folder, model):
    model.save_pretrained(folder)
    made = tiny.tokenizer()
    made.mask_token = tiny.WORDS[2]
    made.save_pretrained(folder)
    return ModelSpec(name="m", checkpoint=str(folder))


def bert(kind):
    torch.manual_seed(0)
    return kind(hf.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=64))


def of(objective):
    return ProbeData(objective=objective, kind="text", train=texts(60, 0), test=texts(60, 1))


def test_a_probe_sees_what_the_features_hold_and_that_it_is_gone(tmp_path):
    model = load(saved(tmp_path, bert(hf.BertModel)), CLASSES)
    metric, before = retained(model.instantiate(0, {}), model, of("probe"))
    ruined = model.instantiate(0, {})
    with torch.no_grad():
        ruined.bert.encoder.layer[-1].output.LayerNorm.weight.zero_()
    assert metric == "probe_accuracy"
    assert before > 0.8
    assert retained(ruined, model, of("probe"))[1] < 0.7
    assert retained(model.instantiate(0, {}), model, of("probe"))[1] == before


def test_an_encoder_is_asked_by_the_head_of_its_own_pretraining(tmp_path):
    own = bert(hf.BertForMaskedLM)
    model = load(saved(tmp_path / "whole", own), CLASSES)
    metric, before = retained(model.instantiate(0, {}), model, of("pretraining"))
    assert metric == "masked_perplexity"
    assert before == pytest.approx(64, rel=0.2)  # drawn at random: all words alike
    moved = model.instantiate(0, {})
    with torch.no_grad():
        moved.bert.embeddings.word_embeddings.weight.add_(torch.randn(64, 32))
    assert retained(moved, model, of("pretraining"))[1] != before
    bare = load(saved(tmp_path / "bare", bert(hf.BertModel)), CLASSES)
    with pytest.raises(InfeasibleError, match="holds no head of its pretraining"):
        retained(bare.instantiate(0, {}), bare, of("pretraining"))


def test_a_decoder_is_asked_for_every_next_token(tmp_path):
    torch.manual_seed(0)
    config = hf.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    model = load(saved(tmp_path, hf.LlamaForCausalLM(config)), HeadSpec(auto_class="AutoModelForCausalLM"))
    metric, value = retained(model.module, model, of("pretraining"))
    losses = []
    for text in texts(60, 1).column("text").to_pylist():
        ids = torch.tensor([model.preprocessor(text, add_special_tokens=True)["input_ids"]])
        with torch.no_grad():
            losses.append(float(model.module(input_ids=ids, labels=ids).loss))  # all texts are equally long
    assert metric == "perplexity"
    assert value == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)


def test_what_is_scored_is_drawn_from_all_classes_alike(tmp_path, checkpoints):
    path = tiny.write_study(tmp_path, checkpoints, models=("vit",))
    entry = '{data: "builtin:digits?classes=0-3", max_examples: 40}'
    path.write_text(path.read_text().replace("  data:", f"  retention: {entry}\n  data:"))
    with provisional(load_study(path)) as study:
        prepared = load_prepared(retention_folder(study.data.folder))
        ordered = prepared.open_test().sort_by("label")  # as in a folder of images by class
        model = load(study.spec.models[0], study.task.head)
        data = ProbeData.of(study.spec, SimpleNamespace(open_test=lambda: ordered, train=prepared.train), model)
    assert data.kind == "image"
    counts = np.bincount(data.test.column("label").to_numpy(), minlength=4)
    assert len(data.test) == 40
    assert counts.min() >= 9, counts


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{data: nowhere.csv, columns: {input: text, target: label}}", "task.retention.data"),
        ("{data: nowhere.csv, objective: pretraining, columns: {input: text}}", "only models of text"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_place(tmp_path, checkpoints, entry, words):
    path = tiny.write_study(tmp_path, checkpoints)
    path.write_text(path.read_text().replace("  data:", f"  retention: {entry}\n  data:"))
    with pytest.raises(InputError, match=words), provisional(load_study(path)):
        pass
