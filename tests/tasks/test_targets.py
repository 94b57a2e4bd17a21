"""Numbers, several labels, records and thresholds: from the file to the scores."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import spearmanr
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from sweeper.core.errors import InputError
from sweeper.core.head import TargetFacts
from sweeper.core.trial import TrialSpec
from sweeper.data.prepare import load_prepared, prepare
from sweeper.data.records import format_value
from sweeper.models.load import load
from sweeper.spec.study import DataSpec, MetricSpec, TaskSpec
from sweeper.store.tables import write_predictions
from sweeper.tasks.base import LossOptions
from sweeper.tasks.metrics import (
    CALIBRATION_BINS,
    MULTI_LABEL,
    REGRESSION,
    calibration_error,
    classification_scores,
    multi_label_scores,
    regression_scores,
)
from sweeper.tasks.registry import make_task, needs
from sweeper.train.evaluate import predict
from sweeper.train.loop import TrainData, train
from sweeper.train.options import TrainOptions


def built(tmp_path, checkpoint, **task):
    """Prepare a task's data and load a model for it."""
    from sweeper.spec.study import ModelSpec

    spec = TaskSpec.model_validate(task)
    data = prepare(spec, seed=0, folder=tmp_path / "data", **needs(spec))
    made = make_task(spec, data.facts)
    model = load(ModelSpec(name="m", checkpoint=str(checkpoint)), made.head)
    splits = {"train": data.train(), "validation": data.validation(), "test": data.open_test()}
    pre = model.preprocessor
    return made, model, data, {split: made.open(made.encode(table, pre), pre) for split, table in splits.items()}


def run(made, model, splits, max_epochs=3, **params):
    trial = TrialSpec(
        trial_id="t",
        number=0,
        model="m",
        params={"learning_rate": 3e-3, "batch_size": 16, "warmup_ratio": 0.0} | params,
        seed=3,
        max_epochs=max_epochs,
    )
    return train(trial, made, model, TrainData(train=splits["train"], validation=splits["validation"]), TrainOptions())


def prices(tmp_path, count=200):
    rng = np.random.default_rng(0)
    size = rng.integers(0, 20, count)
    rows = [f"w{a},{b},{100_000 + 5_000 * a}" for a, b in zip(size, rng.random(count), strict=True)]
    path = tmp_path / "prices.csv"
    path.write_text("\n".join(["size,age,price", *rows]))
    return str(path)


def test_regression_learns_beats_the_mean_and_answers_in_the_targets_unit(tmp_path, checkpoints):
    columns = {"input": {"template": "{size} , {age}"}, "target": "price"}
    made, model, data, splits = built(
        tmp_path,
        checkpoints["bert"],
        type="regression",
        data={"train": prices(tmp_path)},
        columns=columns,
        loss="huber",
    )
    assert load_prepared(data.folder) == data
    labels = data.train().column("label").to_numpy()
    assert (data.facts.mean, data.facts.scale) == (labels.mean(), labels.std())  # of train alone
    training = run(made, model, splits, max_epochs=8)
    measured = list(training)
    baseline = made.baseline(splits["train"].targets, splits["validation"].targets)
    assert baseline["r2"] == pytest.approx(0, abs=0.1)
    assert baseline["rmse"] > 10_000
    assert min(m.metrics["rmse"] for m in measured) < 0.7 * baseline["rmse"]
    folder = tmp_path / "best"
    folder.mkdir()
    training.save_best(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["target_mean"] == data.facts.mean
    found = predict(model, folder, made, splits["test"], TrainOptions())
    assert 90_000 < found.decisions.mean() < 210_000
    assert found.scores == made.score(found.targets, found.probabilities)
    write_predictions(
        tmp_path / "p.parquet",
        model="m",
        config="tuned",
        seed=1,
        example_ids=found.example_ids,
        targets=found.targets,
        predictions=found.decisions,
        probabilities=found.probabilities,
    )
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column("target").to_pylist() == found.targets.tolist()
    assert str(table.schema.field("prediction").type) == "double"


def test_images_named_in_a_file_can_be_regressed(tmp_path, checkpoints):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        level = int(rng.integers(0, 255))
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (level, level, level)).save(buffer, "PNG")
        (tmp_path / f"{i}.png").write_bytes(buffer.getvalue())
        rows.append(f"{i}.png,{level}")
    (tmp_path / "levels.csv").write_text("\n".join(["image,level", *rows]))
    made, model, _, splits = built(
        tmp_path,
        checkpoints["vit"],
        type="regression",
        data={"train": str(tmp_path / "levels.csv")},
        columns={"input": "image", "target": "level"},
    )
    losses = [m.train_loss for m in run(made, model, splits, max_epochs=6)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("cell", "words"),
    [("much", "finite number"), ("inf", "finite number"), ("nan", "a value in every row"), ("3", "more than one")],
)
def test_targets_that_cannot_be_regressed_are_refused(tmp_path, cell, words):
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["text,label", *[f"row {i},3" for i in range(20)], f"last,{cell}"]))
    spec = TaskSpec.model_validate({"type": "regression", "data": {"train": str(path)}})
    with pytest.raises(InputError, match=words):
        prepare(spec, seed=0, folder=tmp_path / "data", **needs(spec))


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=30))
def test_regression_metrics_equal_scikit_learns_and_stay_finite(pairs):
    targets, predictions = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    scores = regression_scores(targets, predictions)
    assert scores.keys() == REGRESSION.keys()
    assert all(np.isfinite(v) for v in scores.values())
    assert scores["rmse"] == pytest.approx(sk.root_mean_squared_error(targets, predictions))
    assert scores["mae"] == pytest.approx(sk.mean_absolute_error(targets, predictions))
    if len(pairs) > 1:
        assert scores["r2"] == pytest.approx(sk.r2_score(targets, predictions))
    if np.ptp(targets) and np.ptp(predictions):
        assert scores["spearman"] == pytest.approx(spearmanr(targets, predictions).statistic)


def test_multi_label_targets_come_as_lists_or_separated_text(tmp_path, checkpoints):
    words = ["red", "green", "blue"]
    chosen = [[w for k, w in enumerate(words) if (i >> k) & 1] for i in range(160)]
    texts = [" ".join(f"w{words.index(w) + 1}" for w in row) + " w9" for row in chosen]
    as_text = tmp_path / "a.csv"
    as_text.write_text(
        "\n".join(["text,label", *[f"{t},{'|'.join(row) or '|'}" for t, row in zip(texts, chosen, strict=True)]])
    )
    as_lists = tmp_path / "a.jsonl"
    as_lists.write_text("\n".join(json.dumps({"text": t, "label": row}) for t, row in zip(texts, chosen, strict=True)))
    prints = set()
    for path in (as_text, as_lists):
        made, model, data, splits = built(
            tmp_path / path.suffix,
            checkpoints["bert"],
            type="multi-label-classification",
            data={"train": str(path)},
            columns={"separator": "|"},
        )
        prints.add(data.fingerprint)
        assert data.classes == ("blue", "green", "red")
        assert data.num_examples == {split: len(splits[split]) for split in ("train", "validation", "test")}
    assert len(prints) == 1
    measured = list(run(made, model, splits, max_epochs=12, learning_rate=1e-2, focal_gamma=0.5))
    trivial = made.baseline(splits["train"].targets, splits["validation"].targets)
    assert max(m.metrics["micro_f1"] for m in measured) > trivial["micro_f1"] + 0.1
    with pytest.raises(InputError, match=r"task\.balance"):
        make_task(TaskSpec(type="multi-label-classification", data={"train": "x"}, balance="sampler"), data.facts)


@given(st.integers(2, 5), st.integers(1, 30), st.integers(0, 2**31))
def test_multi_label_metrics_equal_scikit_learns(num_labels, count, seed):
    rng = np.random.default_rng(seed)
    targets, probabilities = rng.integers(0, 2, (count, num_labels)), rng.random((count, num_labels))
    predicted = (probabilities >= 0.5).astype(int)
    scores = multi_label_scores(targets, probabilities)
    assert scores.keys() == MULTI_LABEL.keys()
    assert scores["micro_f1"] == pytest.approx(sk.f1_score(targets, predicted, average="micro", zero_division=0))
    assert scores["subset_accuracy"] == pytest.approx(sk.accuracy_score(targets, predicted))
    if targets.any(axis=0).all():
        expected = sk.average_precision_score(targets, probabilities, average="macro")
        assert scores["mean_average_precision"] == pytest.approx(expected)


def test_average_precision_and_calibration_equal_scikit_learns():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 500)
    shares = np.clip(0.3 * targets + 0.7 * rng.random(500), 0, 1)
    probabilities = np.stack([1 - shares, shares], axis=1)
    scores = classification_scores(targets, probabilities)
    assert scores["average_precision"] == pytest.approx(sk.average_precision_score(targets, shares))
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    true, mean = calibration_curve(right, confidence, n_bins=CALIBRATION_BINS)
    sizes = np.histogram(confidence, np.linspace(0, 1, CALIBRATION_BINS + 1))[0]
    expected = np.sum(sizes[sizes > 0] * np.abs(true - mean)) / 500
    assert calibration_error(targets, probabilities) == pytest.approx(expected)
    three = rng.dirichlet(np.ones(3), 200)
    labels = rng.integers(0, 3, 200)
    one_hot = np.eye(3)[labels]
    found = classification_scores(labels, three)["average_precision"]
    assert found == pytest.approx(sk.average_precision_score(one_hot, three, average="macro"))


def test_the_threshold_is_chosen_on_validation_and_kept_with_the_weights(tmp_path, checkpoints):
    rng = np.random.default_rng(0)
    rows = [f"w{rng.integers(1, 30)} w{40 + (i % 8 == 0)},{'yes' if i % 8 == 0 else 'no'}" for i in range(160)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["text,label", *rows]))
    made, model, _, splits = built(
        tmp_path,
        checkpoints["bert"],
        type="text-classification",
        data={"train": str(path)},
        threshold="validation",
        metric={"name": "macro_f1"},
    )
    training = run(made, model, splits, max_epochs=2)
    best = max(m.metrics["macro_f1"] for m in training)
    folder = tmp_path / "best"
    folder.mkdir()
    training.save_best(folder)
    found = predict(model, folder, made, splits["validation"], TrainOptions())
    assert found.threshold is not None
    assert found.scores["macro_f1"] == pytest.approx(best)
    assert (found.decisions == (found.probabilities[:, 1] >= found.threshold)).all()


def test_a_better_threshold_than_one_half_is_found():
    task = make_task(
        TaskSpec(type="text-classification", data={"train": "x"}, threshold="validation", metric={"name": "macro_f1"}),
        ["no", "yes"],
    )
    targets = np.array([0] * 8 + [1] * 2)
    shares = np.array([0.01 * i for i in range(8)] + [0.3, 0.4])
    threshold = task.choose_threshold(targets, np.stack([1 - shares, shares], 1))
    assert 0.07 < threshold < 0.3
    assert task.score(targets, np.stack([1 - shares, shares], 1), threshold)["macro_f1"] == 1.0
    with pytest.raises(InputError, match="two classes"):
        make_task(TaskSpec(type="text-classification", data={"train": "x"}, threshold=0.3), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.045, "0.045"),
        (1.00123456, "1.001"),
        (123456.7, "123500"),
        (7.0, "7"),
        (123456, "123456"),
        (None, "missing"),
        (float("nan"), "missing"),
        (True, "yes"),
        (1e-9, "1e-09"),
        (" a ", "a"),
    ],
)
def test_numbers_are_written_deliberately(value, text):
    assert format_value(value, 4) == text


def test_records_become_texts_by_template_or_by_name(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [{"amount": 1.23456 * i, "shop": None if i == 3 else f"s{i}", "fraud": i % 2} for i in range(20)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    for columns, text in (
        ({"input": ["amount", "shop"], "target": "fraud"}, "amount: 3.704; shop: missing"),
        ({"input": {"template": "{{{shop}}} paid {amount}"}, "target": "fraud"}, "{missing} paid 3.704"),
    ):
        spec = TaskSpec.model_validate(
            {"type": "text-classification", "data": {"train": str(path)}, "columns": columns}
        )
        data = prepare(spec, seed=0, folder=tmp_path / text[:3], **needs(spec))
        assert (
            text
            in data.train().column("text").to_pylist()
            + data.validation().column("text").to_pylist()
            + data.open_test().column("text").to_pylist()
        )
    for template, words in (
        ("{nothing}", "nothing"),
        ("no field", "must name a column"),
        ("{amount:.2f}", "column's name"),
        ("{", "readable"),
    ):
        columns = {"input": {"template": template}, "target": "fraud"}
        spec = TaskSpec.model_validate(
            {"type": "text-classification", "data": {"train": str(path)}, "columns": columns}
        )
        with pytest.raises(InputError, match=words):
            prepare(spec, seed=0, folder=tmp_path / "none", **needs(spec))


def test_a_split_by_time_keeps_the_latest_rows_for_the_test(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["text,label,day", *[f"text {i},{'ab'[i % 2]},{(i * 37) % 100}" for i in range(100)]]))
    spec = TaskSpec.model_validate({"type": "text-classification", "data": {"train": str(path), "time": "day"}})
    data = prepare(spec, seed=0, folder=tmp_path / "data", **needs(spec))
    days = [t.column("time").to_numpy() for t in (data.train(), data.validation(), data.open_test())]
    assert [len(d) for d in days] == [65, 15, 20]
    assert days[0].max() < days[1].min()
    assert days[1].max() < days[2].min()


def test_focal_loss_weighs_hard_examples_and_gamma_zero_is_cross_entropy():
    task = make_task(TaskSpec(type="text-classification", data={"train": "x"}), ["a", "b"])
    outputs = SimpleNamespace(logits=torch.tensor([[3.0, 0.0], [0.0, 3.0]], requires_grad=True))
    targets = torch.tensor([0, 0])
    plain, focal = task.loss(outputs, targets), task.loss(outputs, targets, LossOptions(focal_gamma=2.0))
    share = torch.softmax(outputs.logits, 1)[:, 0]
    assert torch.allclose(focal, plain * (1 - share) ** 2)
    focal.sum().backward()
    assert torch.isfinite(outputs.logits.grad).all()


def test_the_trivial_answer_is_learnt_from_train():
    task = make_task(TaskSpec(type="text-classification", data={"train": "x"}), ["a", "b", "c"])
    scores = task.baseline(np.array([0, 1, 1, 2]), np.array([1, 1, 0, 2]))
    assert scores["accuracy"] == 0.5
    facts = TargetFacts(kind="number", mean=1.0, scale=2.0)
    regression = make_task(TaskSpec(type="regression", data={"train": "x"}), facts)
    assert regression.baseline(np.array([1.0, 3.0]), np.array([2.0, 4.0]))["mae"] == 1.0


def test_a_space_may_hold_only_what_the_task_and_training_take(tmp_path, checkpoints):
    from sweeper.spec.study import StudySpec
    from sweeper.workflows.study import assemble

    study = {
        "name": "prices",
        "task": {
            "type": "regression",
            "data": {"train": prices(tmp_path)},
            "columns": {"input": ["size", "age"], "target": "price"},
        },
        "models": [{"name": "bert", "checkpoint": str(checkpoints["bert"])}],
    }
    space = assemble(StudySpec.model_validate(study), tmp_path / "data").spaces["bert"]
    names = {parameter.name for parameter in space}
    assert "learning_rate" in names
    assert "label_smoothing" not in names | set(space.default)
    own = tmp_path / "space.yaml"
    own.write_text(
        "parameters:\n  learning_rate: {type: float, low: 1e-5, high: 1e-3, log: true}\n"
        "  focal_gamma: {type: float, low: 0.0, high: 3.0}\n  balance: none\ndefault: {learning_rate: 1e-4, focal_gamma: 0.0}\n"
    )
    study["search"] = {"space": str(own)}
    with pytest.raises(InputError, match="focal_gamma: applies to classes only") as caught:
        assemble(StudySpec.model_validate(study), tmp_path / "data")
    assert len(caught.value.problems) == 1  # `balance: none` asks for nothing
    own.write_text(
        "parameters:\n  learning_rate: {type: float, low: 1e-5, high: 1e-3, log: true}\n"
        "  dropout: {type: float, low: 0.0, high: 3.0}\n  batch_size: {type: categorical, choices: [0, 16]}\n"
        "default: {learning_rate: 1e-4, dropout: 0.1, batch_size: 16}\n"
    )
    with pytest.raises(InputError) as caught:
        assemble(StudySpec.model_validate(study), tmp_path / "data")
    assert [str(problem) for problem in caught.value.problems] == [
        "models.bert dropout: must be a number from 0 to 0.99, got 3.0; narrow the range",
        "models.bert batch_size: must be a whole number of at least 1, got 0; narrow the range",
    ]


def test_costs_of_mistakes_are_a_metric_that_moves_the_threshold():
    costly = TaskSpec(
        type="text-classification",
        data=DataSpec(train="x"),
        costs=[1, 10],
        threshold="validation",
        metric=MetricSpec(name="expected_cost"),
    )
    task = make_task(costly, ["no", "yes"])
    assert task.objective.goal == "minimize"
    targets = np.array([0, 0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]])
    plain = task.score(targets, probabilities)["expected_cost"]
    assert plain == pytest.approx(10 / 5)  # one yes is missed
    threshold = task.choose_threshold(targets, probabilities)
    assert 0.3 < threshold <= 0.35  # below it two false alarms come in, above it a miss
    assert task.score(targets, probabilities, threshold)["expected_cost"] == pytest.approx(1 / 5)
    with pytest.raises(InputError, match=r"task\.costs"):
        make_task(TaskSpec(type="text-classification", data=DataSpec(train="x"), costs=[1, 2]), ["a", "b", "c"])
