"""Tables whose obvious reading would name the wrong winner."""

from __future__ import annotations

import numpy as np
import pytest
from importtables import curves_of, table, write_csv

from sweeper.core.errors import InputError
from sweeper.report.source import read_source
from sweeper.workflows.importing import import_results
from sweeper.workflows.results import load_results


def imported(tmp_path, rows, *arguments, **more):
    """What an import of a csv of ``rows`` came to: its manifest's objective and the leaderboard by model."""
    import_results(write_csv(tmp_path / "t.csv", rows), "csv", tmp_path / "out", *arguments, **more)
    board = {entry["model"]: entry for entry in load_results(tmp_path / "out").leaderboard}
    return read_source(tmp_path / "out").objective.goal, board


def test_the_direction_of_an_optuna_study_is_that_of_its_own_value(tmp_path):
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{tmp_path / 's.db'}"
    study = optuna.create_study(storage=storage, study_name="m", direction="minimize")

    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        trial.set_user_attr("val_accuracy", x)
        return 1 - x

    study.optimize(objective, n_trials=12)
    best = max(trial.params["x"] for trial in study.trials)
    for mapping in ((), ("value=val_accuracy",)):
        out = tmp_path / f"out{len(mapping)}"
        import_results(storage, "optuna", out, mapping)
        assert load_results(out).leaderboard[0]["best_params"] == {"x": best}


@pytest.mark.parametrize(
    ("column", "mapping"),
    [("val_neg_log_loss", ()), ("val_negative_rmse", ()), ("score", ("metric=neg_mean_squared_error",))],
)
def test_negated_scores_are_maximised(tmp_path, column, mapping):
    rows = [{"model": m, column: -value, "lr": value} for m in "ab" for value in (0.9, 0.3, 0.5)]
    goal, board = imported(tmp_path, rows, mapping)
    assert goal == "maximize"
    assert board["a"]["best_params"]["lr"] == 0.3


def test_ranks_of_scikit_learn_are_no_test_scores_however_columns_are_mapped(tmp_path):
    rows = [
        {
            "estimator": m,
            "param_C": c,
            "mean_test_neg_log_loss": -c / 9,
            "rank_test_neg_log_loss": c,
            "mean_fit_time": 1,
        }
        for m in "ab"
        for c in range(1, 6)
    ]
    goal, board = imported(tmp_path, rows, ("value=mean_test_neg_log_loss",))
    assert goal == "maximize"
    assert board["a"]["tuned"]["mean"] is None
    assert board["a"]["best_params"] == {"C": 1}


def test_files_of_two_directions_are_refused(tmp_path):
    optuna = pytest.importorskip("optuna")
    files = []
    for direction in ("minimize", "maximize"):
        files.append(str(tmp_path / f"{direction}.db"))
        study = optuna.create_study(storage=f"sqlite:///{files[-1]}", study_name=direction, direction=direction)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    with pytest.raises(InputError, match=r"must have one direction, got minimize\.db minimize, maximize\.db maximize"):
        import_results(files, "optuna", tmp_path / "out")


def test_files_of_equal_names_are_models_by_as_many_folders_as_it_takes(tmp_path):
    files = []
    for run in ("x", "y"):
        (tmp_path / run / "r").mkdir(parents=True)
        files.append(write_csv(tmp_path / run / "r" / "t.csv", [{"val_acc": v, "lr": v} for v in (0.5, 0.6)]))
    done = import_results([*files, files[0]], "csv", tmp_path / "out")
    assert done.num_trials == {"x/r/t": 2, "y/r/t": 2}


def test_percent_signs_among_fractions_are_understood(tmp_path):
    cells = ["91%", "0.95", "88 %", "0.5"]
    _, board = imported(
        tmp_path, [{"model": m, "val_acc": cell, "lr": i} for m in "ab" for i, cell in enumerate(cells)]
    )
    assert board["a"]["validation"] == 0.95
    assert board["a"]["best_params"] == {"lr": 1}


def test_small_percentages_are_no_fractions_and_fractions_beside_percentages_are_refused(tmp_path):
    rows = [
        {"model": m, "val_error": v, "lr": v}
        for m, values in {"a": (0.4, 0.8), "b": (1.2, 1.5)}.items()
        for v in values
    ]
    _, board = imported(tmp_path, rows)
    assert (board["a"]["validation"], board["b"]["validation"]) == (0.4, 1.2)
    mixed = [
        {"model": m, "val_acc": v, "lr": v} for m, values in {"a": (0.4, 0.8), "b": (70, 80)}.items() for v in values
    ]
    with pytest.raises(InputError, match="one unit"):
        import_results(write_csv(tmp_path / "mixed.csv", mixed), "csv", tmp_path / "refused")


def test_of_several_seeds_running_ones_are_left_out_and_a_failed_one_fails_the_trial(tmp_path):
    seeds = {
        "ran": ("finished", 0.9, "running", 0.1),
        "failed": ("finished", 0.8, "failed", 0.9),
        "fine": ("finished", 0.6, "finished", 0.8),
    }
    rows = [
        {"model": m, "trial": f"{m}-{trial}", "seed": seed, "state": state, "val_acc": value}
        for m in "ab"
        for trial, (s1, v1, s2, v2) in seeds.items()
        for seed, state, value in ((1, s1, v1), (2, s2, v2))
    ]  # fmt: skip
    imported(tmp_path, rows)
    trials = {t["trial_id"]: (t["state"], t["value"]) for t in load_results(tmp_path / "out").trials.to_pylist()}
    assert trials["a-ran"] == ("COMPLETE", 0.9)
    assert trials["a-failed"][0] == "FAIL"
    assert trials["a-fine"] == ("COMPLETE", pytest.approx(0.7))


def test_a_metric_with_the_name_of_a_column_is_refused_before_anything_is_written(tmp_path):
    source = write_csv(tmp_path / "t.csv", table())
    with pytest.raises(InputError, match=r"must not be the name of a column.*--map metric=NAME"):
        import_results(source, "csv", tmp_path / "out", ("metric=validation_loss",))
    assert not (tmp_path / "out").exists()


def test_models_with_other_numbers_of_trials_are_compared_at_the_same_ones(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"model": m, "val_acc": v, "test_acc": v - 0.01, "lr": i}
        for m, count in (("a", 1200), ("b", 3000))
        for i, v in enumerate(rng.uniform(0.5, 0.9, count).round(6))
    ]
    imported(tmp_path, rows)
    values = sorted(row["val_acc"] for row in rows if row["model"] == "b")
    at = np.arange(1, 3001) / 3000
    expected = sum((v - 0.01) * (hi**1200 - lo**1200) for v, hi, lo in zip(values, at, at - 1 / 3000, strict=True))
    said = next(line for line in curves_of(tmp_path / "out")["sentences"] if line.startswith("On test"))
    assert f"{expected:.5g}" in said
    assert load_results(tmp_path / "out").leaderboard[0]["device_seconds"] is None, "not known, which is not 0"
