"""What the data check finds, and what its cleaned copy leaves out."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images
from typer.testing import CliRunner

from sweeper.cli import app
from sweeper.data.checks import Scan, check
from sweeper.data.neighbours import Texts, near_rows, normal
from sweeper.data.prepare import prepare
from sweeper.spec.study import TaskSpec
from sweeper.tasks.registry import needs

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("lma", "rtis", "nko", "sse", "pur")]


def sentences(count, seed=0, length=16):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, length)) for _ in range(count)]


def write(path, rows, header=("text", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def scanned(tmp_path, task="text-classification", columns=None, **data):
    spec = TaskSpec.model_validate({"type": task, "data": data, "columns": columns or {}})
    return spec, Scan(prepare(spec, seed=0, folder=tmp_path / "prepared", drop_missing=True, **needs(spec)))


TRIVIAL = [
    str.upper,
    lambda t: "  " + t.replace(" ", "\n\t "),
    lambda t: t.replace(" ", ", ", 3) + "!!!",
    lambda t: unicodedata.normalize("NFD", t),
    lambda t: t[:3] + "\u200b" + t[3:],
    lambda t: "".join(chr(ord(c) + 0xFEE0) if c.isalpha() and c.isascii() else c for c in t),
]


@pytest.mark.parametrize("change", TRIVIAL)
def test_a_trivially_changed_copy_is_a_near_leak(tmp_path, change):
    texts = [f"Café {t}" for t in sentences(60)]
    train = write(tmp_path / "train.csv", [(t, i % 2) for i, t in enumerate(texts[:40])])
    test = write(tmp_path / "test.csv", [(t, i % 2) for i, t in enumerate([*texts[40:], change(texts[4])])])
    _, scan = scanned(tmp_path, train=train, test=test, validation=write(tmp_path / "v.csv", [("x", 0), ("y", 1)]))
    report = scan.report()
    assert report.leaks["train-test"] == 0
    assert report.near_leaks["train-test"] == 1
    assert report.exact_duplicates["all"] == 0


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("costs 1.5", "costs 15", False),
        ("at -5 degrees", "at 5 degrees", False),
        ("2-3 days", "2 3 days", True),
        (":)", ":(", False),
        ("don't", "don t", True),
        ("A_b", "a b", True),
    ],
)
def test_punctuation_that_means_something_stays(a, b, same):
    assert (normal(a) == normal(b)) is same


@given(st.text(max_size=40))
def test_normalising_again_changes_nothing_and_keeps_something(text):
    once = normal(text)
    assert normal(once) == once
    assert once or not text.split()


@given(st.integers(0, 2**31), st.integers(1, 4))
def test_near_texts_are_those_of_jaccard_four_fifths(seed, edits):
    rng = np.random.default_rng(seed)
    words = sentences(1, seed, 20)[0].split()
    other = list(words)
    for at in rng.integers(0, 20, edits):
        other[at] = "zyxw"
    a, b = " ".join(words), " ".join(other)
    grams = [{t[i : i + 5] for i in range(len(t) - 4)} for t in (a, b)]
    jaccard = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
    found = near_rows(Texts([a]), Texts([b]), [1], [2])[0]
    assert found == (jaccard >= 0.8)


def tiles():
    photos = load_sample_images().images
    return [Image.fromarray(p[y : y + 96, x : x + 96]) for p in photos for y in (200, 300) for x in (0, 200, 400)]


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def test_images_encoded_anew_resized_or_brightened_are_near_leaks(tmp_path):
    found = tiles()
    for i, image in enumerate(found[:8]):
        save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", image)
    for i, image in enumerate(found[8:10]):
        save(tmp_path / "validation" / "ab"[i % 2] / f"{i}.png", image)
    for i, image in enumerate(found[10:]):
        save(tmp_path / "test" / "ab"[i % 2] / f"{i}.png", image)
    save(tmp_path / "test/a/jpeg.jpg", found[0], quality=40)
    save(tmp_path / "test/a/small.png", found[1].resize((60, 60)))
    save(tmp_path / "test/a/bright.png", ImageEnhance.Brightness(found[2]).enhance(1.2))
    save(tmp_path / "test/a/same.bmp", found[3])
    save(tmp_path / "test/a/mirror.png", found[4].transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    folders = {split: str(tmp_path / split) for split in ("train", "validation", "test")}
    _, scan = scanned(tmp_path, "image-classification", **folders)
    report = scan.report()
    assert report.leaks == {"train-validation": 0, "train-test": 1, "validation-test": 0}
    assert report.near_leaks == {"train-validation": 0, "train-test": 3, "validation-test": 0}


def test_groups_times_and_telltale_columns_are_told(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "row_id": i,
            "amount": float(rng.random()),
            "refund": f"r{i % 2}",
            "shop": f"s{i % 7}",
            "fraud": i % 2,
            "who": i // 4,
        }
        for i in range(80)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:8]))
    columns = {"input": ["row_id", "amount", "refund", "shop"], "target": "fraud"}
    _, scan = scanned(
        tmp_path, columns=columns, train=str(tmp_path / "t.jsonl"), test=str(tmp_path / "test.jsonl"), group="who"
    )
    report = scan.report()
    assert not any(report.near_duplicates.values())  # records that differ in a digit are different
    assert report.group_leaks["train-validation"] == 0  # a share keeps groups whole
    assert report.group_leaks["train-test"] + report.group_leaks["validation-test"] == 8
    assert report.suspect_inputs == (
        "column row_id looks like an identity: every value is different",
        "column refund alone gives the target away",
    )
    regression = {"input": ["amount", "shop"], "target": "amount2"}
    rows = [{"amount": i, "amount2": 2.0 * i, "shop": f"s{i % 7}"} for i in rng.permutation(80).tolist()]
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    _, scan = scanned(tmp_path / "r", "regression", regression, train=str(tmp_path / "r.jsonl"))
    assert "column amount alone gives the target away" in scan.report().suspect_inputs
    assert scan.report().classes == {}


def test_texts_that_name_their_label_and_far_out_lengths_are_told(tmp_path):
    texts = [f"{t} {'positive' if i % 2 else 'negative'}" for i, t in enumerate(sentences(80))]
    texts[5] = texts[5] * 40
    path = write(tmp_path / "t.csv", [(t, "positive" if i % 2 else "negative") for i, t in enumerate(texts)])
    report = check(
        prepare(TaskSpec(type="text-classification", data={"train": path}), kind="text", seed=0, folder=tmp_path / "p")
    )
    assert report.suspect_inputs == ("100% of the training inputs contain the name of their own label",)
    assert sum(report.outliers.values()) == 1
    assert report.over_long == 1


def study(tmp_path, **data):
    path = tmp_path / "study.yaml"
    sources = ", ".join(f"{split}: {source}" for split, source in data.items())
    path.write_text(
        f"name: s\ntask: {{type: text-classification, data: {{{sources}}}}}\nmodels: [{{name: m, checkpoint: ./none}}]\n"
    )
    return str(path)


def test_fix_writes_a_cleaned_copy_beside_and_never_over(tmp_path):
    texts = sentences(60)
    train = [(t, "ab"[i % 2]) for i, t in enumerate(texts[:40])]
    train += [(texts[0].upper(), "a"), (texts[1], "a"), (texts[2] + " too", "a"), (texts[45], "b"), ("", "")]
    test = [(t, "ab"[i % 2]) for i, t in enumerate(texts[40:])]
    files = [write(tmp_path / "train.csv", train), write(tmp_path / "test.csv", test)]
    before = [Path(f).read_bytes() for f in files]
    yaml = study(tmp_path, train=files[0], test=files[1], validation=0.2)
    result = CliRunner().invoke(app, ["check", yaml, "--fix", "--json"])
    assert result.exit_code == 0, result.output
    assert [Path(f).read_bytes() for f in files] == before
    again = study(tmp_path, train=tmp_path / "train.cleaned.csv", test=tmp_path / "test.cleaned.csv", validation=0.2)
    report = json.loads(CliRunner().invoke(app, ["check", again, "--json"]).stdout)
    assert report["exact_duplicates"]["all"] == report["trivial_duplicates"]["all"] == 0
    assert set(report["leaks"].values()) | set(report["near_leaks"].values()) == {0}
    assert report["conflicting_labels"] == report["missing"] == 0
    log = [json.loads(line) for line in (tmp_path / "train.cleaned.log.jsonl").read_text().splitlines()]
    kept = list(csv.reader(io.StringIO((tmp_path / "train.cleaned.csv").read_text())))
    assert len(kept) - 1 + len(log) == len(train)
    assert "another label" in next(entry["reason"] for entry in log if entry["row"] == 42)
    assert "stands in test" in next(entry["reason"] for entry in log if entry["row"] == 44)
    yaml = study(tmp_path, train=files[0], test=files[1], validation=0.2)
    assert json.loads(CliRunner().invoke(app, ["check", yaml, "--json"]).stdout)["missing"] == 1
    second = CliRunner().invoke(app, ["check", yaml, "--fix"])
    assert second.exit_code != 0
    assert "must not exist yet" in str(second.exception)


def test_missing_values_are_counted_by_the_check(tmp_path):
    rows = [{"text": t if i else None, "label": "ab"[i % 2]} for i, t in enumerate(sentences(40))]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    _, scan = scanned(tmp_path, train=str(tmp_path / "t.jsonl"))
    assert scan.report().missing == 1
    assert sum(scan.report().rows.values()) == 39


SMS = Path(__file__).parents[3] / "shared" / "data" / "sms_spam" / "messages.csv"


@pytest.mark.skipif(not SMS.exists(), reason="the SMS spam collection is not on this machine")
def test_the_403_duplicates_of_sms_spam_are_found(tmp_path):
    _, scan = scanned(tmp_path, columns={"input": "message", "target": "label"}, train=str(SMS))
    report = scan.report().as_dict()
    assert report["exact_duplicates"]["all"] == 403
    assert report["classes"] == {"ham": 4827, "spam": 747}


def test_records_that_differ_in_a_digit_are_no_near_duplicates(tmp_path):
    rows = [{"note": "one long constant description of a shop", "amount": 1000 + i, "label": i % 2} for i in range(60)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    _, scan = scanned(tmp_path, columns={"input": ["note", "amount"]}, train=str(tmp_path / "t.jsonl"))
    report = scan.report()
    assert not any(report.near_leaks.values())
    assert any("not looked for in records" in note for note in report.notes)
