from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics as sk

from sweeper.core.errors import InputError
from sweeper.spec.study import DataSpec, MetricSpec, TaskSpec
from sweeper.tasks.base import LossOptions
from sweeper.tasks.metrics import CLASSIFICATION, classification_scores
from sweeper.tasks.registry import make_task
from sweeper.tasks.text import bucket


def spec(kind, **more):
    return TaskSpec(type=f"{kind}-classification", data=DataSpec(train="x"), **more)


@given(st.integers(2, 6), st.integers(1, 60), st.integers(0, 2**31))
def test_metrics_equal_scikit_learns_and_are_finite(num_classes, count, seed):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, num_classes, count)
    probabilities = rng.dirichlet(np.ones(num_classes), count).astype(np.float32)
    predicted = probabilities.argmax(1)
    scores = classification_scores(targets, probabilities)
    assert scores.keys() == CLASSIFICATION.keys()
    assert all(np.isfinite(value) for value in scores.values())
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(targets, predicted))
    for average in ("macro", "weighted"):
        expected = sk.f1_score(targets, predicted, average=average, zero_division=0)
        assert scores[f"{average}_f1"] == pytest.approx(expected)
    assert scores["mcc"] == pytest.approx(sk.matthews_corrcoef(targets, predicted))
    present = [1] if num_classes == 2 else np.unique(targets)
    areas = [
        sk.average_precision_score(targets == k, probabilities[:, k]) if (targets == k).any() else 0.0 for k in present
    ]
    assert scores["average_precision"] == pytest.approx(np.mean(areas))
    recall = sk.recall_score(targets, predicted, average="macro", labels=np.unique(targets), zero_division=0)
    assert scores["balanced_accuracy"] == pytest.approx(recall)
    expected = sk.log_loss(targets, probabilities.astype(float), labels=range(num_classes))
    assert scores["log_loss"] == pytest.approx(expected, rel=1e-3)


def test_the_goal_follows_the_metric_and_an_unknown_one_is_refused():
    assert make_task(spec("text", metric=MetricSpec(name="log_loss")), ["a", "b"]).objective.goal == "minimize"
    with pytest.raises(InputError, match=r"task\.metric\.name"):
        make_task(spec("text", metric=MetricSpec(name="f1_macro")), ["a", "b"])
    with pytest.raises(InputError, match="did you mean text-classification"):
        make_task(TaskSpec(type="text-clasification", data=DataSpec(train="x")), ["a"])


@given(st.integers(1, 2000), st.sampled_from([64, 256, 512, 1024]))
def test_a_bucket_holds_its_input_and_keeps_the_limit(length, limit):
    length = min(length, limit)
    assert length <= bucket(length, limit) <= limit


def text_examples(texts, max_length=16):
    task = make_task(spec("text", max_length=max_length), ["a", "b"])
    table = pa.table(
        {
            "example_id": [str(i) for i in range(len(texts))],
            "text": texts,
            "label": pa.array([i % 2 for i in range(len(texts))], pa.int32()),
        }
    )
    tokenizer = tiny.tokenizer()
    return task.open(task.encode(table, tokenizer), tokenizer)


def test_a_batch_equals_the_tokenizers_own_padding():
    texts = ["w1 w2 w3", "w4", "w5 " * 40, "w6 w7"]
    batch = text_examples(texts).batch(np.array([2, 0, 3]))
    own = tiny.tokenizer()(
        [texts[2], texts[0], texts[3]], truncation=True, max_length=16, padding="max_length", return_tensors="pt"
    )
    assert torch.equal(batch.inputs["input_ids"], own["input_ids"])
    assert torch.equal(batch.inputs["attention_mask"], own["attention_mask"])
    assert batch.targets.tolist() == [0, 0, 1]


@pytest.mark.parametrize("processor", [hf.ViTImageProcessor, hf.ConvNextImageProcessor])
def test_images_equal_the_processors_own_output_up_to_byte_rounding(processor):
    size = {"height": 20, "width": 20} if processor is hf.ViTImageProcessor else {"shortest_edge": 20}
    made = processor(size=size)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)) for _ in range(3)]
    cells = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        cells.append(buffer.getvalue())
    task = make_task(spec("image"), ["a", "b"])
    labels = pa.array([0, 1, 0], pa.int32())
    table = pa.table({"example_id": ["0", "1", "2"], "image": pa.array(cells, pa.binary()), "label": labels})
    batch = task.open(task.encode(table, made), made).batch(np.array([2, 1]))
    own = made([images[2], images[1]], return_tensors="pt")["pixel_values"]
    assert batch.inputs["pixel_values"].shape == own.shape
    tolerance = 1.01 / 255 / min(made.image_std)
    assert (batch.inputs["pixel_values"] - own).abs().max() <= tolerance


def test_class_weights_multiply_the_losses_of_their_class():
    task = make_task(spec("text"), ["a", "b"])
    outputs = SimpleNamespace(logits=torch.tensor([[2.0, 0.0], [0.5, 0.1]]))
    targets = torch.tensor([0, 1])
    plain = task.loss(outputs, targets)
    weighted = task.loss(outputs, targets, LossOptions(class_weights=torch.tensor([1.0, 3.0])))
    assert weighted.tolist() == pytest.approx([plain[0].item(), 3 * plain[1].item()])
