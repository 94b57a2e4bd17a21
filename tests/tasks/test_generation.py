"""Fine-tuning decoders on prompts and answers."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
import transformers as hf

import sweeper
from sweeper.core.errors import InfeasibleError, InputError
from sweeper.core.selection import best_measurement
from sweeper.core.trial import TrialSpec
from sweeper.data.prepare import prepare
from sweeper.models.load import load
from sweeper.spec.space import load_space, preset_path
from sweeper.spec.study import ModelSpec, TaskSpec
from sweeper.tasks.packed import separating_mask
from sweeper.tasks.registry import make_task, needs
from sweeper.tasks.text_generation import IGNORED
from sweeper.tasks.written import as_numbers, as_texts
from sweeper.train.evaluate import predict
from sweeper.train.loop import TrainData, train
from sweeper.train.options import TrainOptions
from sweeper.workflows.study import provisional

SIZE = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 60, "eos_token_id": 61}
FAMILIES = {
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=64, attn_pdrop=0.0, **SIZE)
    ),
    "llama": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            **SIZE,
        )
    ),
}


def tokenizer():
    made = tiny.tokenizer()
    made.bos_token, made.eos_token = tiny.WORDS[60], tiny.WORDS[61]
    return made


class Bench:
    def __init__(self, folder, family, *, longer=0, **task):
        """``longer``: most further words of an answer, so that examples differ in length."""
        torch.manual_seed(0)
        FAMILIES[family]().save_pretrained(folder / "checkpoint")
        tokenizer().save_pretrained(folder / "checkpoint")
        more = [" w8" * (i % (longer + 1)) for i in range(120)]
        rows = [{"question": f"w{i % 40} w{50 + i % 3}", "answer": f"w{1 + i % 3}{more[i]} w9"} for i in range(120)]
        (folder / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        spec = TaskSpec.model_validate(
            {
                "type": "text-generation",
                "data": {"train": str(folder / "t.jsonl")},
                "columns": {"input": {"template": "w44 {question} w45"}},
                "max_length": 16,
                **task,
            }
        )
        self.data = prepare(spec, seed=0, folder=folder / "data", **needs(spec))
        self.task = make_task(spec, self.data.facts)
        self.model = load(ModelSpec(name="m", checkpoint=str(folder / "checkpoint")), self.task.head)
        pre = self.model.preprocessor
        tables = {"train": self.data.train(), "validation": self.data.validation()}
        self.splits = {k: self.task.open(self.task.encode(t, pre), pre) for k, t in tables.items()}

    def run(self, max_epochs=4, resume=None, options=None, **params):
        params = {"learning_rate": 1e-2, "batch_size": 16, "warmup_ratio": 0.0} | params
        trial = TrialSpec(trial_id="t", number=0, model="m", params=params, seed=1, max_epochs=max_epochs)
        return train(trial, self.task, self.model, TrainData(**self.splits), options or TrainOptions(), resume)


@pytest.fixture(scope="module", params=FAMILIES)
def bench(request, tmp_path_factory):
    return Bench(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module", params=FAMILIES)
def uneven(request, tmp_path_factory):
    """Examples of 8 to 13 tokens, of which two of the shortest fit into a row of 16."""
    return Bench(tmp_path_factory.mktemp(request.param), request.param, longer=5)


def test_only_the_answer_and_its_end_bear_loss(bench):
    batch = bench.splits["train"].batch(np.array([3, 5]))
    words = bench.data.train().to_pylist()
    for row, index in enumerate((3, 5)):
        ids, wanted = batch.inputs["input_ids"][row], batch.targets[row]
        answer = [*tokenizer().convert_tokens_to_ids(words[index]["label"].split()), 61]
        assert ids[0] == 60
        assert wanted[wanted != IGNORED].tolist() == answer
        assert ids[wanted != IGNORED].tolist() == answer
    own = bench.model.module(
        input_ids=batch.inputs["input_ids"], attention_mask=batch.inputs["attention_mask"], labels=batch.targets
    )
    mine = bench.task.loss(own, batch.targets)
    assert mine.mean().item() == pytest.approx(
        own.loss.item(), rel=1e-5
    )  # answers of equal length: transformers' own loss


def test_prompts_go_through_the_tokenizers_own_chat_template(bench):
    chat = tokenizer()
    chat.chat_template = (
        "{% for m in messages %}w50 w{{ 1 if m.role == 'user' else 2 }} {{ m.content }} w51 {% endfor %}"
        "{% if add_generation_prompt %}w50 w2 {% endif %}"
    )
    table = pa.table({"example_id": ["a"], "text": ["w7 w8"], "label": ["w9"]})
    batch = bench.task.open(bench.task.encode(table, chat), chat).batch(np.array([0]))
    count = int(batch.inputs["attention_mask"].sum())
    words = chat.convert_ids_to_tokens(batch.inputs["input_ids"][0, :count].tolist())
    assert words == ["w50", "w1", "w7", "w8", "w51", "w50", "w2", "w9", tiny.WORDS[61]]  # the template's tokens alone
    wanted = batch.targets[0]
    assert chat.convert_ids_to_tokens(wanted[wanted != IGNORED].tolist()) == ["w9", tiny.WORDS[61]]


def test_decoders_tell_the_dropout_of_attention_from_that_of_hidden_states(bench):
    run = bench.run(dropout=0.2, attention_dropout=0.3)
    assert run.effective["dropouts"]["attention_dropout"] == [0.3]
    assert run.effective["dropouts"]["dropout"] == [0.2]


def test_what_is_too_long_loses_the_beginning_of_its_prompt(bench):
    import pyarrow as pa

    table = pa.table({"example_id": ["a"], "text": [" ".join(["w5"] * 30 + ["w7"])], "label": ["w1 w2"]})
    batch = bench.task.open(bench.task.encode(table, bench.model.preprocessor), bench.model.preprocessor).batch(
        np.array([0])
    )
    ids = tokenizer().convert_ids_to_tokens(batch.inputs["input_ids"][0].tolist())
    assert len(ids) == 16
    assert ids[-4:] == ["w7", "w1", "w2", tiny.WORDS[61]]


def test_training_lowers_the_perplexity_and_exact_match_is_what_greedy_decoding_gives(bench, tmp_path):
    run = bench.run()
    measured = list(run)
    assert measured[-1].metrics["perplexity"] < 0.2 * 64
    assert measured[-1].train_loss < measured[0].train_loss
    run.save_best(tmp_path)
    found = predict(bench.model, tmp_path, bench.task, bench.splits["validation"], TrainOptions())
    module = bench.model.load_weights(tmp_path)
    hits = []
    for row in range(len(bench.splits["validation"])):
        batch = bench.splits["validation"].batch(np.array([row]))
        answer = batch.targets[0] != IGNORED
        start = int(answer.nonzero()[0, 0])
        prompt = batch.inputs["input_ids"][:, :start]
        made = module.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=int(answer.sum()), do_sample=False
        )
        hits.append(made[0, start:].tolist() == batch.targets[0][answer].tolist())
    assert found.decisions.tolist() == [int(h) for h in hits]
    assert found.scores["exact_match"] == np.mean(hits)
    assert bench.task.baseline(np.array(["a", "b", "b"]), np.array(["b", "a"])) == {"exact_match": 0.5}


@pytest.mark.parametrize("schedule", [{"unfreezing": "last_blocks", "num_unfrozen_blocks": 2}, {"unfreezing": "lora"}])
def test_a_decoder_resumes_bit_for_bit(bench, tmp_path, schedule):
    options = {**schedule, "dropout": 0.1, "token_dropout": 0.1}
    whole = [(m.train_loss, dict(m.metrics)) for m in bench.run(**options)]
    first = bench.run(**options)
    head = [next(first) for _ in range(2)]
    first.save_snapshot(tmp_path)
    assert [(m.train_loss, dict(m.metrics)) for m in [*head, *bench.run(resume=tmp_path, **options)]] == whole


def test_adapters_leave_the_vocabulary_alone_and_merge(bench, tmp_path):
    run = bench.run(unfreezing="lora", lora_rank=4)
    best = min(run, key=lambda m: m.metrics["perplexity"])
    assert run.effective["stages"][0]["trainable_groups"] == [1, 2, 3]
    assert best.metrics["perplexity"] < run.measurements[0].metrics["perplexity"]
    run.save_best(tmp_path)
    found = predict(bench.model, tmp_path, bench.task, bench.splits["validation"], TrainOptions())
    assert found.scores == pytest.approx(best.metrics, rel=1e-5)


def test_the_preset_runs_and_class_remedies_are_refused(bench):
    space = load_space(preset_path("gpt2", "text-generation"))
    next(bench.run(**{k: v for k, v in space.default.items() if k != "batch_size"}))
    with pytest.raises(InfeasibleError, match="focal_gamma"):
        bench.run(focal_gamma=1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_model_writes_is_what_it_gives_for_each_prompt_alone(tmp_path, family):
    bench = Bench(tmp_path, family, max_new_tokens=6, metric={"name": "chrf"})
    run = bench.run(max_epochs=3)
    best = best_measurement(list(run), bench.task.objective)
    assert best.metrics["chrf"] > run.measurements[0].metrics["chrf"]
    (tmp_path / "best").mkdir()
    run.save_best(tmp_path / "best")
    found = predict(bench.model, tmp_path / "best", bench.task, bench.splits["validation"], TrainOptions())
    assert found.probabilities.shape[1] == 3
    assert found.scores == pytest.approx(best.metrics, rel=1e-5)
    assert found.scores["generated_match"] == np.mean(found.decisions == found.targets)
    assert found.scores["generated_match"] == found.scores["exact_match"]
    module, own = bench.model.load_weights(tmp_path / "best"), bench.model.preprocessor
    for row in range(5):
        batch = bench.splits["validation"].batch(np.array([row]))
        start = int((batch.targets[0] != IGNORED).nonzero()[0, 0])
        prompt = batch.inputs["input_ids"][:, :start]
        made = module.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
        assert found.decisions[row] == own.decode(made[0, start:], skip_special_tokens=True)
    assert bench.task.baseline(np.array(["a b", "b"]), np.array(["b", "a b"]))["generated_match"] == 0.5


def test_how_much_of_a_prompt_is_shown_does_not_depend_on_the_answer_that_is_asked_for(tmp_path):
    bench = Bench(tmp_path, "gpt2", max_new_tokens=6, metric={"name": "chrf"})
    own, prompt = bench.model.preprocessor, " ".join(f"w{i % 40}" for i in range(90))
    table = pa.table({"example_id": ["0", "1"], "text": [prompt] * 2, "label": ["w1", "w2 w9 " * 12]})
    examples = bench.task.open(bench.task.encode(table, own), own)
    shown = examples.prompts(np.arange(2), own.model_max_length - 6)
    assert shown["attention_mask"].sum(dim=1).tolist() == [16, 16], "max_length, which both fill"
    assert shown["input_ids"][0].tolist() == shown["input_ids"][1].tolist()


def test_settings_of_writing_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(InputError, match="must leave room for a prompt"):
        Bench(tmp_path, "gpt2", max_new_tokens=64)
    spec = TaskSpec.model_validate({"type": "regression", "data": {"train": "x"}, "max_new_tokens": 4})
    with pytest.raises(InputError, match="only text generation writes"):
        make_task(spec, [])


def test_texts_travel_as_numbers():
    texts = ["", "a\nb", "\U0001f600 ż"]
    assert as_texts(as_numbers(texts)).tolist() == texts


def test_packed_examples_are_computed_as_if_each_were_alone(uneven):
    rows, module = np.arange(12), uneven.model.instantiate(0, {}).eval()
    assert len(set(uneven.splits["train"].lengths[rows])) == 6
    packed = uneven.task.packed(uneven.splits["train"], rows)
    assert packed.inputs["input_ids"].shape[0] < len(rows)
    gradients = []
    for batches in ([packed], [uneven.splits["train"].batch(rows[[at]]) for at in rows]):
        losses = torch.cat([uneven.task.loss(module(**batch.inputs), batch.targets) for batch in batches])
        losses.sum().backward()
        gradients.append((losses.detach(), [p.grad.clone() for p in module.parameters()]))
        module.zero_grad()
    (together, of_packed), (alone, of_each) = gradients
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    for mine, wanted in zip(of_packed, of_each, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_a_packed_trial_measures_what_an_unpacked_one_does(bench):
    """Of examples of one length, whose batches are the same both ways."""
    still = {"dropout": 0.0, "max_epochs": 2}
    plain, packed = (list(bench.run(options=TrainOptions(packing=flag), **still)) for flag in (False, True))
    assert [m.train_loss for m in packed] == pytest.approx([m.train_loss for m in plain], rel=1e-3)
    assert packed[-1].metrics["perplexity"] == pytest.approx(plain[-1].metrics["perplexity"], rel=1e-2)


def test_batches_to_be_packed_hold_examples_of_all_lengths_which_fill_rows_best(uneven):
    lengths, spreads = uneven.splits["train"].lengths, {}
    for flag in (False, True):
        run = uneven.run(options=TrainOptions(packing=flag))
        assert run.effective["packing"] == flag
        spreads[flag] = np.mean([np.ptp(lengths[rows]) for rows in run._batches(1)])
    assert spreads[True] > 2 * spreads[False]


def test_packing_is_refused_where_examples_would_see_each_other(uneven, monkeypatch):
    options = TrainOptions(packing=True)
    with pytest.raises(InfeasibleError, match="token_dropout"):
        uneven.run(options=options, token_dropout=0.1)

    def causal(owners):
        return separating_mask(torch.zeros_like(owners))

    monkeypatch.setattr("sweeper.tasks.text_generation.separating_mask", causal)
    with pytest.raises(InfeasibleError, match="does not keep the examples of a row apart"):
        uneven.run(options=options)


def test_a_study_that_has_nothing_to_pack_is_refused(tmp_path, checkpoints):
    path = tiny.write_study(tmp_path, checkpoints, models=("vit",), num_trials=1)
    with (
        pytest.raises(InputError, match=r"training\.packing: only text generation packs examples"),
        provisional(sweeper.load_study(path, ["training.packing=true"])),
    ):
        pass
