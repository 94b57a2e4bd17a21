from __future__ import annotations

import json
import re
from itertools import pairwise

import numpy as np
import pytest
from results_folder import make_results

from sweeper.core.errors import InputError
from sweeper.report.suite import Table, summarise
from sweeper.stats import probability_of_improvement
from sweeper.workflows.suite import run_suite

NAMES = ("good", "middling", "<img src=x onerror=alert(1)>")


@pytest.fixture
def suite(tmp_path):
    make_results(tmp_path / "one", NAMES)
    make_results(tmp_path / "two", (NAMES[1], NAMES[0], "extra"))
    (tmp_path / "suite.yaml").write_text("schema: 1\nname: both\nstudies:\n  - one\n  - {results: two, task: second}\n")
    return tmp_path / "suite.yaml"


def test_a_suite_gathers_studies_into_one_leaderboard(suite, tmp_path):
    done = run_suite(suite)
    board = done.found["leaderboard"]
    assert {entry["model"] for entry in board} == {"good", "middling"}
    assert [task["task"] for task in done.found["tasks"]] == ["demo", "second"]
    assert {task["best"] for task in done.found["tasks"]} == {"good", "middling"}
    assert [entry["tuned"]["mean_rank"]["value"] for entry in board] == [1.5, 1.5]
    assert [entry["wins"] for entry in board] == [1, 1]
    assert done.found["improvements"][0]["value"] == pytest.approx(0.5)
    assert len(done.found["left_out"]) == 2
    assert done.folder == tmp_path / "suites" / "both"
    page, text = ((done.folder / name).read_text() for name in ("index.html", "suite.md"))
    bare = re.sub(r'<script type="text/plain".*?</script>', "", page, flags=re.DOTALL)
    assert "<img" not in bare
    assert "<img" not in text
    assert "best mean rank" in text
    assert json.loads((done.folder / "suite.json").read_text()) == done.found


def test_the_aggregates_are_those_of_rliable():
    rng = np.random.default_rng(0)
    runs = {t: {m: rng.normal(at, 1, 8) for at, m in enumerate("abc")} for t in ("x", "y", "z")}
    found = summarise(Table(("x", "y", "z"), tuple("abc"), {"tuned": runs, "default": {}}, (), "score"))
    for entry in found["leaderboard"]:
        values = np.sort(np.concatenate([runs[t][entry["model"]] for t in runs]))
        iqm = entry["tuned"]["iqm"]
        assert iqm["value"] == pytest.approx(values[6:18].mean())
        assert iqm["low"] < iqm["value"] < iqm["high"]
    pair = next(p for p in found["improvements"] if {p["model"], p["other"]} == {"c", "a"})
    matrices = [np.stack([runs[t][m] for t in runs], axis=1) for m in (pair["model"], pair["other"])]
    assert pair["value"] == pytest.approx(probability_of_improvement(*matrices))
    profile = found["profiles"]["shares"]["c"]
    assert all(later <= earlier for earlier, later in pairwise(profile))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nstudies: []\n", "studies"),
        ("name: x\nstudies: [{task: a}]\n", "either a study file or a result folder"),
        ("name: x\nstudies: [one]\nnormalize: range\n", "normalise"),
        ("name: x\nstudies: [absent]\n", "must have results, got none"),
        ("name: x\nstudies: [one, one]\n", "tasks must have different names, got demo"),
    ],
)
def test_a_wrong_suite_is_one_line_a_problem(tmp_path, text, message):
    make_results(tmp_path / "one")
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        run_suite(tmp_path / "suite.yaml", only_gather=True)
    assert not (tmp_path / "suites").exists()


def test_scores_of_different_metrics_are_averaged_on_a_range_only(tmp_path):
    for name in ("one", "two"):
        make_results(tmp_path / name)
    manifest = (tmp_path / "two" / "manifest.json").read_text()
    (tmp_path / "two" / "manifest.json").write_text(manifest.replace('"maximize"', '"minimize"'))
    suite = tmp_path / "suite.yaml"
    suite.write_text("name: x\nstudies: [one, {results: two, task: second}]\n")
    with pytest.raises(InputError, match="set normalise: range"):
        run_suite(suite)
    suite.write_text(suite.read_text() + "normalise: range\n")
    found = run_suite(suite).found
    assert all(0 <= value <= 1 for task in found["tasks"] for value in task["means"].values())
    assert {task["best"] for task in found["tasks"]} == {"good", NAMES[2]}
