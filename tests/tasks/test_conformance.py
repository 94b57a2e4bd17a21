"""Every built-in task, and the examples' own ones, pass the suite that users get."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers as hf
from PIL import Image

from sweeper.spec.study import TaskSpec
from sweeper.tasks.registry import BUILT_IN
from sweeper.testing.task import TaskConformance, make_case

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COUNT = 40


def rows_of_text(target):
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(60)]
    for i in range(COUNT):
        yield {"text": f"{'w1 w2' if i % 2 else 'w3'} {' '.join(rng.choice(words, 3 + i % 4))}", "label": target(i)}


def write_rows(folder, rows):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_images(folder):
    for i in range(COUNT):
        pixels = np.full((16, 16, 3), 40 if i % 2 else 200, dtype=np.uint8)
        (folder / str(i % 2)).mkdir(exist_ok=True, parents=True)
        Image.fromarray(pixels + np.uint8(i)).save(folder / str(i % 2) / f"{i}.png")
    return folder


def write_objects(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    images, objects = [], []
    for i in range(COUNT):
        pixels, x = np.zeros((32, 32, 3), dtype=np.uint8), 2 + i % 12
        pixels[8:20, x : x + 14, i % 2] = 255
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        images.append(buffer.getvalue())
        objects.append({"bbox": [[x, 8, 14, 12]], "category": ["ab"[i % 2]]} if i else {"bbox": [], "category": []})
    kind = pa.struct([("bbox", pa.list_(pa.list_(pa.int64()))), ("category", pa.list_(pa.string()))])
    pq.write_table(pa.table({"image": images, "objects": pa.array(objects, kind)}), folder / "data.parquet")
    return folder / "data.parquet"


def save(folder, model, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def text_model(folder):
    torch.manual_seed(0)
    return save(folder, tiny.bodies()["bert"], tiny.tokenizer())


def decoder(folder):
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    return save(folder, hf.LlamaForCausalLM(config), tiny.tokenizer())


def image_model(folder):
    torch.manual_seed(0)
    return save(folder, tiny.bodies()["vit"], hf.ViTImageProcessor(size={"height": 16, "width": 16}))


def detector(folder):
    torch.manual_seed(0)
    return save(folder, *tiny.detectors()["yolos"])


CASES = {
    "text-classification": (lambda f: write_rows(f, rows_of_text(lambda i: "ab"[i % 2])), text_model, {}),
    "image-classification": (lambda f: write_images(f / "images"), image_model, {}),
    "multi-label-classification": (
        lambda f: write_rows(f, rows_of_text(lambda i: ["a", "b"] if i % 2 else ["c"])),
        text_model,
        {"columns": {"kind": "text"}},
    ),
    "regression": (lambda f: write_rows(f, rows_of_text(lambda i: 3.0 * (i % 2) + i / 50)), text_model, {}),
    "text-generation": (
        lambda f: write_rows(f, rows_of_text(lambda i: "w5 w6" if i % 2 else "w7")),
        decoder,
        {"max_length": 32},
    ),
    "object-detection": (write_objects, detector, {"image_size": 64}),
}


def test_no_built_in_task_is_left_out():
    assert CASES.keys() == BUILT_IN.keys()


def case_of(name, folder, **more):
    write, make_model, options = CASES[name]
    data = {"train": str(write(folder)), "validation": 0.2, "test": 0.1}
    spec = TaskSpec(type=more.get("type", name), data=data, **options)
    return make_case(spec, folder, make_model(folder / "model"))


@pytest.mark.parametrize("name", CASES, scope="class")
class TestBuiltIn(TaskConformance):
    @pytest.fixture(scope="class")
    def case(self, name, tmp_path_factory):
        return case_of(name, tmp_path_factory.mktemp(name))


def imported(path, monkeypatch_path=True):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


class TestOrdinal(TaskConformance):
    @pytest.fixture(scope="class")
    def case(self, tmp_path_factory):
        imported(EXAMPLES / "custom_task" / "ordinal.py")
        return case_of("text-classification", tmp_path_factory.mktemp("ordinal"), type="ordinal:Ordinal")


class TestNextItem(TaskConformance):
    @pytest.fixture(scope="class")
    def case(self, tmp_path_factory):
        imported(EXAMPLES / "recommendation" / "next_item.py")
        return case_of("text-classification", tmp_path_factory.mktemp("next"), type="next_item:NextItem")
