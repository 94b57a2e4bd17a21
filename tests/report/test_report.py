from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from results_folder import SEEDS, add_predictions, make_results

from sweeper.cli import main
from sweeper.core.objective import Objective
from sweeper.core.space import Float, Int
from sweeper.report.build import build_report
from sweeper.report.cards import model_card
from sweeper.report.costs import costs
from sweeper.report.effects import flips, tuning_effects
from sweeper.report.examples import comparisons, confusions, disagreements, read_examples
from sweeper.report.explain import _wider, explain
from sweeper.report.gaps import gaps
from sweeper.report.latex import escape as latex_escape
from sweeper.report.leaderboard import leaderboard
from sweeper.report.markdown import escape
from sweeper.report.method import dimensions, range_words, scope, sources
from sweeper.report.source import read_source
from sweeper.store.paths import ResultPaths
from sweeper.store.tables import write_table
from sweeper.workflows.manifest import record_node_labels


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return add_predictions(make_results(tmp_path_factory.mktemp("report") / "demo"))


def test_the_leaderboard_ranks_and_judges_every_pair(results):
    build_report(results)
    board = json.loads((results / "report" / "leaderboard.json").read_text())
    assert [entry["rank"] for entry in board] == [1, 2, 3]
    assert board[0]["model"] == "good"
    assert board[0]["tuned"]["seeds"] == SEEDS
    assert board[0]["tuned"]["ci_low"] < board[0]["tuned"]["mean"] < board[0]["tuned"]["ci_high"]
    assert {v["verdict"] for v in board[0]["verdicts"]} == {"beats"}
    assert set(board[0]["verdicts"][0]) == {
        *("other", "verdict", "difference", "ci_low", "ci_high", "p_value", "unit", "more_seeds")
    }
    assert board[0]["best_params"] == {"learning_rate": 9.9e-3, "unfreezing": "full"}
    assert board[0]["num_trials"] == 12


def test_the_page_is_self_contained_and_names_are_text(results):
    page = build_report(results).read_text()
    without_plotly = re.sub(r'<script type="text/plain".*?</script>', "", page, count=1, flags=re.DOTALL)
    assert "<img" not in without_plotly
    assert "&lt;img src=x" in without_plotly
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", without_plotly)
    assert "<b>nan</b>" not in without_plotly
    assert "default-src 'none'" in page
    assert len(page) < 3e6


def test_the_report_says_what_was_unequal_and_where_a_range_ends(results):
    build_report(results)
    page, text = ((results / "report" / name).read_text() for name in ("index.html", "report.md"))
    assert page.count("unequal effort") == 1
    assert "the best learning" in text
    assert "high end of its range" in text
    assert "Trivial baseline" in text


def test_the_report_says_why_a_search_ended_early(tmp_path):
    root = make_results(tmp_path / "early")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["content"]["search"]["num_trials"] = 20
    manifest["search_ends"] = {"good": "all 12 different configurations of the space were tried"}
    (root / "manifest.json").write_text(json.dumps(manifest))
    build_report(root)
    for name in ("index.html", "report.md"):
        shown = (root / "report" / name).read_text()
        assert "12 of 20 trials (all 12 different configurations of the space were tried)" in shown


def test_a_best_value_near_an_end_of_its_range_comes_with_a_wider_one(results):
    found = explain(read_source(results))["good"]
    assert found["boundaries"] == [
        {
            "name": "learning_rate",
            "value": 9.9e-3,
            "end": "high",
            "bound": 1e-2,
            "suggested": 0.32,
            "override": "models.good.space.learning_rate.high=0.32",
        }
    ]
    assert found["importance"] == {}
    assert found["ablation"] is None


def test_an_end_that_training_cannot_pass_is_no_finding():
    assert _wider(Float(name="dropout", low=0.0, high=0.4), "low") == 0.0
    assert _wider(Float(name="dropout", low=0.0, high=0.4), "high") == 0.6
    assert _wider(Int(name="epochs_per_stage", low=1, high=2), "low") == 1
    assert _wider(Int(name="num_unfrozen_blocks", low=1, high=4), "high") == 6


def test_before_the_confirmation_nothing_is_claimed(tmp_path):
    page = build_report(make_results(tmp_path / "early", confirmed=False)).read_text()
    assert "nothing can be claimed" in page
    assert "not confirmed" in page


def test_it_is_rebuilt_without_ray_and_torch(results, tmp_path):
    copy = shutil.copytree(results, tmp_path / "copy")
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "torch", "transformers", "optuna"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
from sweeper.cli import main
main(["report", {str(copy)!r}])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "good" in result.stdout


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_closed_disk_is_one_line_and_the_earlier_report_stays(results, monkeypatch, capsys, code):
    page = build_report(results).read_bytes()
    before = {path.name for path in (results / "report").iterdir()}

    def fail(path, *_, **__):
        path.touch()
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(results)])
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.count("\n") == 1
    assert os.strerror(code) in said
    assert (results / "report" / "index.html").read_bytes() == page
    assert {path.name for path in (results / "report").iterdir()} == before


def test_markdown_shows_names_as_they_are():
    assert escape("<a|b>*") == "&lt;a\\|b&gt;\\*"


def test_the_report_holds_tuning_curves_with_bands(results):
    build_report(results)
    curves = json.loads((results / "report" / "tuning_curves.json").read_text())
    good = curves["models"]["good"]
    values = [0.95] + [0.6] * 8  # trial 5 and eight others are complete, three are pruned
    assert good["num_trials"] == len(values)
    assert good["n"] == list(range(1, 10))
    assert good["expected_best"]["v"] == pytest.approx([0.95 - 0.35 * (8 / 9) ** n for n in range(1, 10)])
    assert good["expected_best"]["u"] == pytest.approx([0.6 + 0.35 * n / 9 for n in range(1, 10)])
    for low, middle, high in zip(*(good["band"][key] for key in ("low", "median", "high")), strict=True):
        assert low is None or low <= middle
        assert high is None or middle <= high
    assert curves["winner"]["model"] == "good"
    assert curves["leads"] == [{"model": "good", "first": 1, "last": 8}]
    assert any("adaptive" in caveat for caveat in curves["caveats"])
    text = (results / "report" / "report.md").read_text()
    assert "no curves cross" in text
    assert "## Validation against test" in text


def test_the_latex_table_escapes_names(results):
    build_report(results)
    table = (results / "report" / "leaderboard.tex").read_text()
    assert r"\textless{}img src=x" in table
    assert table.count(r"\\") == 4
    assert latex_escape("a_b & 5%{}") == r"a\_b \& 5\%\{\}"


def test_the_gap_between_validation_and_test_is_signed_by_the_goal(tmp_path):
    source = read_source(make_results(tmp_path / "gap"))
    tested = source.scores["good", "tuned", "test"]
    tested.update({seed: score - 0.01 for seed, score in tested.items()})
    row = next(row for row in gaps(source) if row["model"] == "good" and row["config"] == "tuned")
    assert row["search"] == 0.95
    assert row["optimism"] == pytest.approx(0.95 - row["validation"])
    assert row["gap"] == pytest.approx(0.01)
    assert row["overtuning"] == 0, "of the two incumbents with test scores the later is the better"
    flipped = replace(source, objective=Objective("accuracy", "minimize"))
    other = next(row for row in gaps(flipped) if row["model"] == "good" and row["config"] == "tuned")
    assert other["gap"] == pytest.approx(-0.01)


def figures_of(page):
    return json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)[1])


def test_every_figure_is_one_that_plotly_takes_and_its_names_are_escaped(results):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    page = build_report(results).read_text()
    found = figures_of(page)
    assert {"tuned", "tuning", "tuning-cost", "history", "learning", "cost"} <= set(found)
    assert {"parallel-0", "confusion-0", "confusion-2"} <= set(found)
    for key, spec in found.items():
        graph_objects.Figure(spec)
        assert "<img" not in json.dumps(spec), key
        assert f'data-figure="{key}"' in page


def test_the_library_in_the_page_unpacks_to_plotlys_own(results):
    import base64
    import gzip

    from plotly.offline import get_plotlyjs

    packed = re.search(r'<script type="text/plain" id="plotly">(.*?)</script>', build_report(results).read_text())[1]
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()


def test_the_report_says_what_tuning_changed_and_whether_the_ranking_flips(results):
    effects = {effect.model: effect for effect in tuning_effects(read_source(results))}
    assert effects["good"].words == "tuning helps"
    assert effects["good"].ci_low < effects["good"].difference < effects["good"].ci_high
    source = read_source(results)
    for seed in SEEDS:
        source.scores["good", "default", "test"][seed] = 0.1
        source.scores["middling", "tuned", "test"][seed] = 0.5 + seed / 1000
    assert any(
        line.startswith("The ranking flips: at their defaults middling is ahead of good") for line in flips(source)
    )
    assert {e.model: e.words for e in tuning_effects(source)}["middling"] == "tuning hurts"
    losses = replace(source, objective=Objective("accuracy", "minimize"))
    assert {e.model: e.words for e in tuning_effects(losses)}["good"] == "the default won the search"


def test_confusions_and_disagreements_count_what_the_models_answered(results):
    found = read_examples(read_source(results))
    matrices = confusions(found)
    assert matrices["good"].tolist() == [[5 * len(SEEDS), 0], [0, 5 * len(SEEDS)]]
    assert matrices["middling"].sum() - matrices["middling"].trace() == len(SEEDS)
    assert [row["example_id"] for row in disagreements(found)] == ["e8", "e9"]
    pair = next(row for row in comparisons(found) if row["other"].startswith("<img"))
    assert pair["model"] == "good"
    assert (pair["only_model"], pair["only_other"]) == (2, 0)
    assert pair["difference"] == pytest.approx(0.2)


def test_costs_stand_beside_quality_with_the_pareto_front(results):
    source = read_source(results)
    rows = costs(source, leaderboard(source))
    assert [row["num_parameters"] for row in rows] == [3_000_000, 2_000_000, 1_000_000]
    assert all(row["pareto"] for row in rows), "the better the slower"
    page = build_report(results).read_text()
    for text in ("3 M", "3 ms", "Pareto front", "Openings of the test split", "licence mit", "Scope of the claims"):
        assert text in page, text


def test_models_that_asked_for_different_nodes_are_not_compared_by_seconds(results, tmp_path):
    results = shutil.copytree(results, tmp_path / "labelled")
    paths = ResultPaths(results)
    asked = {model: {"kind": "large" if model == "good" else "small"} for model in read_source(results).models}
    record_node_labels(paths, {model: {"kind": "small"} for model in asked})
    assert any(row["pareto"] for row in costs(read_source(results), leaderboard(read_source(results)))), "equal nodes"
    record_node_labels(paths, asked)
    source = read_source(results)
    for trial in source.of("good"):
        trial["node"] = "h3" if trial["number"] else "h4"
    assert not any(row["pareto"] for row in costs(source, leaderboard(source)))
    assert any(
        "good: kind=large, searched on h3 (11 trials) and h4 (1 trial). middling: kind=small." in s
        for s in scope(source)
    )
    page = build_report(results).read_text()
    assert not {"cost", "tuning-cost"} & set(figures_of(page))
    assert "their seconds cannot be compared" in page


def test_a_search_space_is_shown_with_ranges_and_sources():
    space = {
        "parameters": {
            "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
            "optimizer": {"type": "categorical", "choices": ["adamw"]},
        },
        "source": "a paper; learning_rate: another; and more",
    }
    assert sources(space) == ("a paper", {"learning_rate": "another; and more"})
    assert dimensions(space) == "1 dimension and 1 fixed"
    assert range_words(space["parameters"]["learning_rate"]) == "1e-05 to 0.01, log scale"


def test_a_model_card_holds_results_scope_and_licence(results):
    from huggingface_hub import ModelCard

    card = ModelCard(model_card(results, "good", seed=SEEDS[0]))
    assert card.data.license == "mit"
    result = card.data.eval_results[0]
    assert result.metric_type == "accuracy"
    assert result.metric_value == pytest.approx(0.9, abs=0.01)
    for text in ("| tuned | 0.9", "| default | 0.5", "good beats middling", "Scope", "`learning_rate`: `0.0099`"):
        assert text in card.text, text


def test_the_scope_says_whether_splits_were_varied(results):
    source = read_source(results)
    assert "It says nothing of other splits" in scope(source)[0]
    source.manifest.content["confirm"]["vary"] = ["seed", "split"]
    assert "the split into train and validation, drawn anew for each seed" in scope(source)[0]
    assert "test split was the same in all runs" in scope(source)[0]


def test_trials_that_tie_on_validation_are_chosen_between_as_confirmation_chose(tmp_path):
    make_results(tmp_path, ("good", "other"))
    paths = ResultPaths(tmp_path)
    trials, measurements = (pq.read_table(path).to_pylist() for path in (paths.trials, paths.measurements))
    tied = [trial for trial in trials if trial["model"] == "good" and trial["number"] in (5, 7)]
    assert {trial["state"] for trial in tied} == {"COMPLETE"}
    tied[1]["value"] = tied[0]["value"]
    for row in measurements:
        row["validation_loss"] = 0.4 if row["trial_id"] == tied[1]["trial_id"] else row["validation_loss"]
    for path, rows in ((paths.trials, trials), (paths.measurements, measurements)):
        write_table(path, pa.Table.from_pylist(rows, schema=pq.read_schema(path)))
    assert read_source(tmp_path).best("good")["number"] == 7
