from __future__ import annotations

import json
from dataclasses import replace

import pytest
import results_folder
from scipy import stats as scipy_stats

from sweeper.core.errors import InputError
from sweeper.stats import welch_interval
from sweeper.store.manifest import read_manifest, write_manifest
from sweeper.store.paths import ResultPaths
from sweeper.workflows.compare import compare


def change_manifest(folder, **changes):
    paths = ResultPaths(folder)
    write_manifest(paths, replace(read_manifest(paths), **changes))


@pytest.fixture
def two(tmp_path):
    first = results_folder.make_results(tmp_path / "first", models=("good", "middling"))
    second = results_folder.make_results(tmp_path / "second", models=("good", "other"))
    return first, second


def test_two_leaderboards_stand_side_by_side(two):
    found = compare(*two)
    assert found.same_data is True
    assert [entry["model"] for entry in found.a["leaderboard"]] == ["good", "middling"]
    assert [entry["model"] for entry in found.b["leaderboard"]] == ["good", "other"]
    assert [change.model for change in found.models] == ["good"]
    assert found.models[0].difference == 0
    assert found.models[0].ci_low < 0 < found.models[0].ci_high
    assert any("middling" in line for line in found.plan_differences)
    text = found.as_text()
    assert "Same data" in text
    assert "good 0.9" in text


def test_other_data_are_refused_by_name_unless_accepted(two):
    data = read_manifest(ResultPaths(two[1])).data
    change_manifest(
        two[1], data=data | {"fingerprint": "e" * 64, "counts": data["counts"] | {"test": {"a": 1, "b": 4}}}
    )
    with pytest.raises(InputError, match="test has 10 examples in A, 5 in B"):
        compare(*two)
    found = compare(*two, accept_difference=True)
    assert found.same_data is False
    assert "DIFFERENT DATA: fingerprint ffff" in found.as_text()


def test_another_metric_is_refused(two):
    content = read_manifest(ResultPaths(two[1])).content
    change_manifest(two[1], content=content | {"objective": {"metric": "accuracy", "goal": "minimize"}})
    with pytest.raises(InputError, match=r"metric accuracy \(maximize\) in A, accuracy \(minimize\) in B"):
        compare(*two)


def test_unknown_data_of_an_import_are_said_to_be_unknown(two):
    data = read_manifest(ResultPaths(two[1])).data
    change_manifest(two[1], data=data | {"fingerprint": None}, imported={"source": "x.csv"})
    found = compare(*two)
    assert found.same_data is None
    assert "data of B are not known" in found.as_text()


def test_the_command_prints_json_and_exits_with_2_on_other_data(two, capsys):
    from sweeper.cli import main

    with pytest.raises(SystemExit) as end:
        main(["compare", str(two[0]), str(two[1]), "--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["model"] == "good"
    change_manifest(two[1], data=read_manifest(ResultPaths(two[1])).data | {"fingerprint": "e" * 64})
    with pytest.raises(SystemExit) as end:
        main(["compare", str(two[0]), str(two[1])])
    assert end.value.code == 2
    assert "--accept-difference" in capsys.readouterr().err


def test_welchs_interval_equals_scipys():
    a, b = [0.9, 0.8, 0.85, 0.95], [0.7, 0.75, 0.5]
    low, high = scipy_stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    found = welch_interval(a, b, 0.9)
    assert (found.mean, found.low, found.high) == (pytest.approx(0.225), pytest.approx(low), pytest.approx(high))
    assert welch_interval([1.0], [0.5]).low is None
