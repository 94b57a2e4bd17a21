from __future__ import annotations

import errno
import fcntl
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sweeper.core.errors import InputError
from sweeper.data.checks import check
from sweeper.data.encoded import encoded
from sweeper.data.prepare import load_prepared, prepare
from sweeper.data.repeated import repeated_inputs
from sweeper.data.splits import split_off
from sweeper.spec.study import ColumnsSpec, DataSpec, TaskSpec


def make(tmp_path, kind="text", columns=None, seed=0, in_memory=None, **data):
    spec = TaskSpec(type=f"{kind}-classification", data=DataSpec(**data), columns=columns or ColumnsSpec())
    return prepare(spec, kind=kind, seed=seed, folder=tmp_path / "prepared", in_memory=in_memory)


def refused(tmp_path, **arguments):
    with pytest.raises(InputError) as caught:
        make(tmp_path, **arguments)
    assert not (tmp_path / "prepared").exists()
    lines = str(caught.value).splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def table(tmp_path, rows, name="train.csv", header="text,label"):
    path = tmp_path / name
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


ROWS = [f"example number {i},{'ab'[i % 2]}" for i in range(40)]


def test_a_missing_column_names_the_columns_that_are_there(tmp_path):
    line = refused(tmp_path, train=table(tmp_path, ROWS, header="words,label"))
    assert "words, label" in line
    assert "task.columns.input" in line


def test_an_empty_file(tmp_path):
    (tmp_path / "train.csv").write_text("")
    assert "must not be empty" in refused(tmp_path, train=str(tmp_path / "train.csv"))


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    table(tmp_path, ROWS, name="training.csv")
    assert "did you mean training.csv?" in refused(tmp_path, train=str(tmp_path / "trainin.csv"))


def test_one_class_only(tmp_path):
    assert "at least two classes" in refused(tmp_path, train=table(tmp_path, [f"text {i},a" for i in range(40)]))


def test_a_label_unseen_in_train(tmp_path):
    other = table(tmp_path, ["x,a", "y,c"], name="test.csv")
    line = refused(tmp_path, train=table(tmp_path, ROWS), test=other)
    assert "every label must occur in train, got c" in line


def test_a_split_without_rows(tmp_path):
    assert "at least one example" in refused(
        tmp_path, train=table(tmp_path, ROWS), test=table(tmp_path, [], name="t.csv")
    )


def test_missing_values_are_counted_and_located(tmp_path):
    rows = [json.dumps({"text": "x", "label": "a"}), json.dumps({"text": None, "label": "b"})]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    assert "1 missing, the first in row 2" in refused(tmp_path, train=str(tmp_path / "train.jsonl"))


def test_a_file_that_is_not_what_its_name_says(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 this is none")
    assert "must be a readable .parquet file" in refused(tmp_path, train=str(tmp_path / "train.parquet"))


def image_folder(tmp_path):
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng([i, ord(label)]).integers(0, 255, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i}.png")
    return tmp_path / "images"


def test_an_unreadable_image_is_named(tmp_path):
    folder = image_folder(tmp_path)
    (folder / "a" / "3.png").write_bytes(b"\x89PNG broken")
    line = refused(tmp_path, kind="image", train=str(folder))
    assert "a/3.png: must be a readable image" in line


def test_an_absurdly_large_image_is_refused_without_decoding(tmp_path):
    folder = image_folder(tmp_path)
    Image.new("1", (20_000, 20_000)).save(folder / "a" / "bomb.png")
    assert "bomb.png" in refused(tmp_path, kind="image", train=str(folder))


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path):
    folder = image_folder(tmp_path)
    secret = tmp_path / "secret.png"
    Image.new("L", (4, 4)).save(secret)
    (folder / "a" / "link.png").symlink_to(secret)
    assert "leads outside" in refused(tmp_path, kind="image", train=str(folder))


def test_splits_are_stratified_disjoint_and_repeatable(tmp_path):
    rows = [f"text number {i},{'a' if i % 4 else 'b'}" for i in range(200)]
    path = table(tmp_path, rows)
    first = make(tmp_path / "1", train=path, validation=0.25, test=0.25)
    second = make(tmp_path / "2", train=path, validation=0.25, test=0.25)
    assert first.num_examples == {"train": 100, "validation": 50, "test": 50}
    assert first.fingerprint == second.fingerprint
    ids = [t.column("example_id").to_pylist() for t in (first.train(), first.validation(), first.open_test())]
    assert len(set().union(*ids)) == 200
    for counts in first.counts.values():
        assert abs(counts["b"] / sum(counts.values()) - 0.25) < 0.03
    assert make(tmp_path / "3", train=path, validation=0.25, test=0.25, seed=1).fingerprint != first.fingerprint


def test_groups_are_never_split(tmp_path):
    rows = [f"text {i},{'ab'[i % 2]},g{i // 5}" for i in range(200)]
    path = table(tmp_path, rows, header="text,label,author")
    data = make(tmp_path, train=path, validation=0.2, test=0.2, group="author")
    groups = [
        {int(i.split("-")[1]) // 5 for i in t.column("example_id").to_pylist()}
        for t in (data.train(), data.validation(), data.open_test())
    ]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]


def test_a_class_with_one_row_stays_in_train():
    labels = np.array(["a"] * 10 + ["b"] * 10 + ["c"])
    rest, chosen = split_off(labels, 0.2, 0)
    assert 20 in rest
    assert Counter(labels[chosen]) == {"a": 2, "b": 2}


def test_digits_are_the_asked_classes_and_the_training_set_can_be_small(tmp_path):
    data = make(tmp_path, kind="image", train="builtin:digits?classes=5-9", max_train_examples=50)
    assert data.classes == ("5", "6", "7", "8", "9")
    assert data.num_examples["train"] == 50
    assert load_prepared(data.folder) == data


def test_docstrings_are_masked_unique_and_the_same_each_time(tmp_path):
    first = make(tmp_path / "1", train="builtin:docstrings?per_class=30")
    second = make(tmp_path / "2", train="builtin:docstrings?per_class=30")
    assert first.fingerprint == second.fingerprint
    assert len(first.classes) == 8
    texts = first.train().column("text").to_pylist()
    assert len(set(texts)) == len(texts)
    words = {word.strip("`.,").lower() for text in texts for word in text.split()}
    assert not words & {"numpy", "pandas", "torch", "scipy", "transformers", "ray"}


def test_another_split_of_train_and_validation_never_touches_the_test(tmp_path):
    data = make(tmp_path, train=table(tmp_path, ROWS))
    train, validation = data.resplit(7)
    ids = set(train.column("example_id").to_pylist()) | set(validation.column("example_id").to_pylist())
    assert len(train) == data.num_examples["train"]
    assert not ids & set(data.open_test().column("example_id").to_pylist())
    assert train.column("example_id").to_pylist() != data.train().column("example_id").to_pylist()


def test_datasets_in_memory_take_the_place_of_files(tmp_path):
    import datasets

    rows = {"text": [f"text {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    data = make(tmp_path, train="memory:", in_memory={"train": datasets.Dataset.from_dict(rows)})
    assert data.classes == ("0", "1")


def test_planted_duplicates_and_leaks_are_counted(tmp_path):
    words = [f"w{i}" for i in range(400)]
    rng = np.random.default_rng(0)
    sentence = lambda: " ".join(rng.choice(words, 20))  # noqa: E731
    train = [sentence() for _ in range(100)]
    train += [*train[:3], train[4]]  # the last one meets the other label
    near = [text + " extra" for text in train[10:14]]
    exact = [train[20].upper(), "  " + train[21], train[22]]
    test = [sentence() for _ in range(50)] + near + exact
    path = table(tmp_path, [f"{text},{'ab'[i % 2]}" for i, text in enumerate(train)])
    other = table(tmp_path, [f"{text},{'ab'[i % 2]}" for i, text in enumerate(test)], name="test.csv")
    validation = table(tmp_path, [f"{sentence()},{'ab'[i % 2]}" for i in range(20)], name="validation.csv")
    data = make(tmp_path, train=path, validation=validation, test=other)
    report = check(data).as_dict()
    assert report["exact_duplicates"]["train"] == 4
    assert report["leaks"] == {"train-validation": 0, "train-test": 1, "validation-test": 0}
    assert report["near_leaks"]["train-test"] == 6
    assert report["conflicting_labels"] == 1
    json.dumps(report)
    told = "4 of 104 train inputs stood earlier in it, 1 of 57 test inputs stand in train, 1 of train and validation stand with different labels"
    assert told in repeated_inputs(data)


def test_of_a_clean_set_nothing_is_told(tmp_path):
    assert repeated_inputs(make(tmp_path, train="builtin:digits?classes=5-6", kind="image")) == ""


def test_of_many_that_ask_for_an_encoded_table_at_once_one_builds_it(tmp_path):
    built = []

    def build():
        built.append(1)
        time.sleep(0.1)
        return pa.table({"x": [1, 2]})

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: encoded(tmp_path, "key", build), range(8)))
    assert built == [1]
    assert all(table.column("x").to_pylist() == [1, 2] for table in found)


def test_an_encoded_table_is_built_where_the_disk_knows_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    assert encoded(tmp_path, "key", lambda: pa.table({"x": [1]})).column("x").to_pylist() == [1]


def test_an_encoded_table_is_built_once_and_mapped(tmp_path):
    built = []

    def build():
        built.append(1)
        return pa.concat_tables([pa.table({"x": [1, 2]}), pa.table({"x": [3]})])

    for _ in range(2):
        result = encoded(tmp_path, "key", build)
        assert result.column("x").num_chunks == 1
        assert result.column("x").to_pylist() == [1, 2, 3]
    assert built == [1]
