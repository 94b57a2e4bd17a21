from __future__ import annotations

import hashlib
import json
import sqlite3

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from importtables import SCORES, curves_of, table, write_csv

from sweeper.core.errors import InputError
from sweeper.report.source import read_source
from sweeper.report.tuning import tuning_curves
from sweeper.stats import expected_best
from sweeper.store.manifest import read_manifest
from sweeper.store.paths import ResultPaths
from sweeper.workflows.importing import import_results
from sweeper.workflows.results import load_results


def test_tuning_curves_of_an_imported_table_equal_the_published_formulas(tmp_path):
    """V of Dodge et al. 2019 and U of Tang et al. 2020, written out term by term."""
    from math import comb

    import_results(write_csv(tmp_path / "t.csv", table()), "csv", tmp_path / "out")
    found = curves_of(tmp_path / "out")
    for model, values in SCORES.items():
        v, count = np.sort(values), len(values)
        for n in (1, 2, 7, 40):
            biased = sum(v[i - 1] * ((i / count) ** n - ((i - 1) / count) ** n) for i in range(1, count + 1))
            unbiased = sum(v[i - 1] * comb(i - 1, n - 1) for i in range(n, count + 1)) / comb(count, n)
            assert found["models"][model]["expected_best"]["v"][n - 1] == pytest.approx(biased, abs=1e-9)
            assert found["models"][model]["expected_best"]["u"][n - 1] == pytest.approx(unbiased, abs=1e-7)
    first = next(n for n in range(1, 41) if expected_best(SCORES["BERT"], [n]) > expected_best(SCORES["MiniLM"], [n]))
    assert found["winner"]["model"] == "BERT"
    assert found["leads"] == [
        {"model": "MiniLM", "first": 1, "last": first - 1},
        {"model": "BERT", "first": first, "last": 40},
    ]
    for name in ("report.md", "index.html"):
        text = (tmp_path / "out" / "report" / name).read_text()
        assert f"below {first} trials MiniLM leads" in text
        assert "No fresh seeds" in text
        assert "not sealed" in text
        assert "independent draws" in text


def test_the_result_folder_has_the_contracts_files(tmp_path):
    source = write_csv(tmp_path / "t.csv", table())
    done = import_results(source, "csv", tmp_path / "out")
    result = load_results(tmp_path / "out")
    assert done.num_trials == {"BERT": 40, "MiniLM": 40}
    assert result.trials.num_rows == 80
    assert result.trials.column("value").to_pylist()[:40] == list(SCORES["BERT"])
    assert {"params_learning_rate", "params_batch_size", "test_value"} <= set(result.trials.column_names)
    assert result.trials.column("elapsed_seconds")[0].as_py() == 10.5
    assert result.confirmations.num_rows == result.predictions.num_rows == 0
    imported = read_manifest(ResultPaths(tmp_path / "out")).imported
    assert imported["source"] == source
    assert imported["sha256"] == hashlib.sha256((tmp_path / "t.csv").read_bytes()).hexdigest()
    assert imported["columns"]["value"] == "val_accuracy"
    first = result.leaderboard[0]
    chosen = SCORES[first["model"]].max()
    assert first["tuned"]["mean"] == pytest.approx(chosen - 0.01)
    assert first["tuned"]["ci_low"] is None
    assert first["tuned"]["seeds"] == []
    assert first["verdicts"][0]["verdict"] == "undecided against"


def test_losses_are_minimised(tmp_path):
    import_results(write_csv(tmp_path / "t.csv", table("val_loss", "test_loss", -1.0)), "csv", tmp_path / "out")
    found = curves_of(tmp_path / "out")
    assert found["goal"] == "minimize"
    assert found["winner"]["model"] == "BERT"
    bert = found["models"]["BERT"]
    assert bert["expected_best"]["v"] == pytest.approx(list(-expected_best(SCORES["BERT"], range(1, 41))))
    for low, high in zip(bert["band"]["low"], bert["band"]["high"], strict=True):
        assert low is None or high is None or low <= high
    board = load_results(tmp_path / "out").leaderboard
    assert board[0]["tuned"]["mean"] == pytest.approx(-SCORES[board[0]["model"]].max() + 0.01)


def test_an_unsaid_direction_is_noted(tmp_path):
    done = import_results(write_csv(tmp_path / "t.csv", table("validation", "test")), "csv", tmp_path / "out")
    assert any("--goal" in note for note in done.notes)
    assert "more was taken" in (tmp_path / "out" / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("rows", "mapping", "message"),
    [
        ([{"val_f1": 0.5, "lr": 1}], [], "model must have a column.*val_f1, lr.*--map model=COLUMN"),
        ([{"model": "a", "val_f1": 0.5, "val_auc": 0.5}], [], "value must be one column.*val_f1, val_auc"),
        ([{"backbone": "a", "algorithm": "b", "val_f1": 0.5}], [], "model must be one column.*backbone, algorithm"),
        ([{"model": "a", "val_f1": 0.5}], ["vale=val_f1"], "FIELD=COLUMN with a field of"),
        ([{"model": "a", "val_f1": 0.5}], ["value=f1"], "one of the columns model, val_f1, got f1"),
        ([{"model": "a", "val_f1": "good"}], ["value=val_f1"], "must hold numbers, got good"),
        ([{"model": "a", "val_f1": 0.5, "state": "odd"}], [], "must be one of complete.*got odd"),
        ([{"model": "a", "val_f1": 0.5, "trial_id": 1}] * 2, [], "one row, one an epoch, or one a seed"),
        ([{"model": "a", "val_f1": 0.5, "config": "tuned"}], [], "must have a seed"),
    ],
)
def test_what_is_unclear_or_impossible_is_named_and_nothing_is_written(tmp_path, rows, mapping, message):
    with pytest.raises(InputError, match=message):
        import_results(write_csv(tmp_path / "t.csv", rows), "csv", tmp_path / "out", mapping)
    assert not (tmp_path / "out").exists()


def test_a_used_folder_and_a_missing_source_are_errors(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(InputError, match="new or empty folder"):
        import_results(write_csv(tmp_path / "t.csv", table()), "csv", tmp_path / "out")
    with pytest.raises(InputError, match="nothing there"):
        import_results(str(tmp_path / "absent.csv"), "csv", tmp_path / "new")
    with pytest.raises(InputError, match="must be one of optuna"):
        import_results(str(tmp_path / "t.csv"), "excel", tmp_path / "new")


def test_failed_running_and_scoreless_trials_keep_their_state(tmp_path):
    rows = [
        {"model": "a", "val_f1": 0.5, "state": "finished"},
        {"model": "a", "val_f1": float("nan"), "state": "finished"},
        {"model": "a", "val_f1": 0.9, "state": "stopped"},
        {"model": "a", "val_f1": "", "state": "crashed"},
        {"model": "a", "val_f1": 0.9, "state": "running"},
    ]
    done = import_results(write_csv(tmp_path / "t.csv", rows), "csv", tmp_path / "out", ["value=val_f1"])
    trials = load_results(tmp_path / "out").trials
    assert trials.column("state").to_pylist() == ["COMPLETE", "FAIL", "PRUNED", "FAIL"]
    assert trials.column("value").to_pylist() == [0.5, None, None, None]
    assert any("had not ended" in note for note in done.notes)
    assert curves_of(tmp_path / "out")["models"]["a"]["num_trials"] == 1


def test_rows_of_epochs_become_learning_curves_scored_at_the_best_epoch(tmp_path):
    lines = [
        {"model": m, "trial": t, "epoch": e, "val_acc": v, "test_acc": v - 0.1, "params": {"lr": 0.1 * (t + 1)}}
        for m in ("a", "b")
        for t in (0, 1)
        for e, v in enumerate((0.5, 0.8 + t / 100, 0.7), start=1)
    ]
    file = tmp_path / "curves.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    import_results(str(file), "jsonl", tmp_path / "out")
    result = load_results(tmp_path / "out")
    assert result.measurements.num_rows == 12
    assert result.trials.column("value").to_pylist() == [0.8, 0.81, 0.8, 0.81]
    assert result.trials.column("best_epoch").to_pylist() == [2] * 4
    assert result.trials.column("test_value").to_pylist() == pytest.approx([0.7, 0.71, 0.7, 0.71])
    assert result.best_params["a"] == {"lr": 0.2}
    assert result.manifest.content["objective"] == {"metric": "accuracy", "goal": "maximize"}


def test_confirmation_runs_in_a_table_give_verdicts(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"model": m, "val_f1": 0.5, "test_f1": 0.5, "config": "search", "seed": 0} for m in "ab"]
    rows += [
        {"model": m, "val_f1": base, "test_f1": base + rng.normal(0, 0.01), "config": "tuned", "seed": seed}
        for m, base in (("a", 0.9), ("b", 0.7))
        for seed in range(8)
    ]
    done = import_results(write_csv(tmp_path / "t.csv", rows), "csv", tmp_path / "out")
    assert done.num_confirmations == 32
    board = load_results(tmp_path / "out").leaderboard
    assert board[0]["model"] == "a"
    assert board[0]["verdicts"][0]["verdict"] == "beats"
    assert board[0]["tuned"]["seeds"] == list(range(8))
    assert "search never used these seeds is not known" in (tmp_path / "out" / "report" / "report.md").read_text()


@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_an_optuna_storage_is_read_and_left_as_it_is(tmp_path, storage):
    optuna = pytest.importorskip("optuna")
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = tmp_path / ("study.log" if storage == "journal" else "study.db")
    backend = (
        optuna.storages.JournalStorage(JournalFileBackend(str(path))) if storage == "journal" else f"sqlite:///{path}"
    )
    for model, shift in (("bert", 0.0), ("minilm", 0.1)):
        study = optuna.create_study(study_name=model, storage=backend, direction="minimize")

        def objective(trial, shift=shift):
            x = trial.suggest_float("x", 0, 1)
            trial.report(x + 1, 1)
            trial.set_user_attr("test_score", x + 2)
            if trial.number == 2:
                raise optuna.TrialPruned
            return x + shift

        study.optimize(objective, n_trials=4)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    source = str(path) if storage == "journal" else f"sqlite:///{path}"
    import_results(source, "optuna", tmp_path / "out")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    result = load_results(tmp_path / "out")
    assert result.manifest.content["objective"]["goal"] == "minimize"
    assert result.trials.column("state").to_pylist() == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"] * 2
    x = result.trials.column("params_x").to_pylist()
    assert result.trials.column("value")[0].as_py() == pytest.approx(x[0])
    assert result.trials.column("value")[4].as_py() == pytest.approx(x[4] + 0.1)
    assert result.trials.column("test_value")[0].as_py() == pytest.approx(x[0] + 2)
    assert set(curves_of(tmp_path / "out")["models"]) == {"bert", "minilm"}


def test_what_is_no_optuna_storage_is_an_error(tmp_path):
    other = sqlite3.connect(tmp_path / "mine.db")
    other.execute("create table mine (x)")
    other.close()
    before = (tmp_path / "mine.db").read_bytes()
    with pytest.raises(InputError, match="Optuna journal file or SQLite"):
        import_results(str(tmp_path / "mine.db"), "optuna", tmp_path / "out")
    assert (tmp_path / "mine.db").read_bytes() == before, "Optuna would have made its tables in it"
    (tmp_path / "x.db").write_text("not a storage")
    with pytest.raises(InputError, match="Optuna journal file or SQLite"):
        import_results(str(tmp_path / "x.db"), "optuna", tmp_path / "out")


def test_a_ray_tune_folder_is_read_without_its_pickles(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    import pickle

    for model, base in (("bert", 0.7), ("minilm", 0.6)):
        for number in range(3):
            folder = tmp_path / "tune" / f"train_{model}_{number}"
            folder.mkdir(parents=True)
            (folder / "params.json").write_text(json.dumps({"model": model, "lr": 0.1 * (number + 1)}))
            (folder / "params.pkl").write_bytes(pickle.dumps(Bomb()))
            epochs = 1 if number == 2 else 3
            lines = [
                {"val_accuracy": base + 0.01 * e + 0.001 * number, "training_iteration": e, "time_total_s": 2.0 * e, "trial_id": "x", "config": {"lr": 1}, "done": e == 3}
                for e in range(1, epochs + 1)
            ]  # fmt: skip
            (folder / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cut": ')
    (tmp_path / "tune" / "train_bert_1" / "error.txt").write_text("Traceback\nValueError: boom\n")
    import_results(str(tmp_path / "tune"), "ray", tmp_path / "out")
    assert not (tmp_path / "exploded").exists()
    result = load_results(tmp_path / "out")
    assert result.trials.column("state").to_pylist() == ["COMPLETE", "FAIL", "PRUNED", "COMPLETE", "COMPLETE", "PRUNED"]
    assert result.trials.column("reason")[1].as_py() == "ValueError: boom"
    assert result.trials.column("value")[0].as_py() == pytest.approx(0.73)
    assert result.trials.column("elapsed_seconds")[0].as_py() == 6.0
    assert result.best_params["minilm"] == {"lr": pytest.approx(0.2)}


def test_a_wandb_export_is_read(tmp_path):
    rows = [
        {"Name": f"run-{m}-{i}", "State": "finished", "Runtime": 30, "Created": "2026", "model": m, "lr": 0.1, "eval/accuracy": 0.5 + i / 10, "_step": 3}
        for m in ("a", "b")
        for i in range(3)
    ]  # fmt: skip
    import_results(write_csv(tmp_path / "wandb.csv", rows), "wandb", tmp_path / "out")
    trials = load_results(tmp_path / "out").trials
    assert trials.column("trial_id").to_pylist()[:2] == ["run-a-0", "run-a-1"]
    assert trials.column("elapsed_seconds")[0].as_py() == 30
    assert json.loads(trials.column("params")[0].as_py()) == {"lr": 0.1}


def test_a_parquet_table_with_chosen_columns_is_read(tmp_path):
    rows = table("x", "y")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    mapping = ["validation=x", "test=y", "metric=macro_f1", "params=learning_rate", "trial_id="]
    import_results(str(tmp_path / "t.parquet"), "parquet", tmp_path / "out", mapping, "maximize")
    result = load_results(tmp_path / "out")
    assert result.manifest.content["objective"] == {"metric": "macro_f1", "goal": "maximize"}
    assert set(result.leaderboard[0]["best_params"]) == {"learning_rate"}


def test_the_command_prints_the_winner_and_exits_with_2_on_unclear_columns(tmp_path, capsys):
    from sweeper.cli import main

    source = write_csv(tmp_path / "t.csv", table())
    with pytest.raises(SystemExit) as end:
        main(["import", source, "--as", "csv", "--output", str(tmp_path / "out")])
    assert end.value.code == 0
    assert "trials MiniLM leads" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["report", str(tmp_path / "out")])
    assert end.value.code == 0
    with pytest.raises(SystemExit) as end:
        main(["import", source, "--as", "csv", "--map", "model=nope", "-o", str(tmp_path / "other")])
    assert end.value.code == 2
    assert "must name one of the columns" in capsys.readouterr().err


PAIRS = [(m, float(v), round(float(v) - 0.01, 4)) for m, values in SCORES.items() for v in values]
SHAPES = {
    "percent signs": "Model,Val. Accuracy (%),Test Accuracy (%)\n"
    + "".join(f"{m},{100 * v:.2f}%,{100 * t:.2f}%\n" for m, v, t in PAIRS),
    "semicolons and decimal commas": "model;val_acc;test_acc\n"
    + "".join(f"{m};{v};{t}\n".replace(".", ",") for m, v, t in PAIRS),
    "tabs under a byte-order mark": "\ufeffmodel\tdevAcc\ttestAcc\n" + "".join(f"{m}\t{v}\t{t}\n" for m, v, t in PAIRS),
    "comments and blanks": "# our sweep\nmodel , valacc , testacc\n"
    + "".join(f"{m} , {v} , {t}\n" for m, v, t in PAIRS),
    "Markdown": "| encoder | val acc | test acc |\n| --- | --: | --: |\n"
    + "".join(f"| {m} | {v} | {t} |\n" for m, v, t in PAIRS),
    "a row a split": "arch,run,split,accuracy\n"
    + "".join(f"{m},{i},dev,{v}\n{m},{i},test,{t}\n" for i, (m, v, t) in enumerate(PAIRS)),
    "a row a metric": "model,trial,metric,value\n"
    + "".join(f"{m},{i},val_acc,{v}\n{m},{i},test_acc,{t}\n" for i, (m, v, t) in enumerate(PAIRS)),
    "a column a model": "trial,BERT_val_acc,BERT_test_acc,MiniLM_val_acc,MiniLM_test_acc\n"
    + "".join(f"{i},{a},{a - 0.01},{b},{b - 0.01}\n" for i, (a, b) in enumerate(zip(*SCORES.values(), strict=True))),
    "a model under an unusual name": "thing,val_acc,test_acc\n" + "".join(f"{m},{v},{t}\n" for m, v, t in PAIRS),
    "a JSON array": json.dumps(
        [{"model": m, "metrics": {"valid": {"acc": v}, "test": {"acc": t}}} for m, v, t in PAIRS]
    ),
    "the last epoch beside the best": "".join(
        json.dumps({"model": m, "validation_accuracy": v - 0.1, "best_validation_accuracy": v, "test_accuracy": t})
        + "\n"
        for m, v, t in PAIRS
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_tables_of_every_shape_give_the_same_curves(tmp_path, monkeypatch, shape):
    monkeypatch.setattr("sweeper.workflows.importing.build_report", lambda root: root)
    text = SHAPES[shape]
    (tmp_path / "t").write_text(text, encoding="utf-8")
    import_results(str(tmp_path / "t"), "jsonl" if text[0] in "[{" else "csv", tmp_path / "out")
    curves = tuning_curves(read_source(tmp_path / "out"))
    unit = 100 if "%" in text[:40] else 1
    for model, values in SCORES.items():
        expected = unit * expected_best(values, range(1, 41))
        assert curves["models"][model]["expected_best"]["v"] == pytest.approx(list(expected), abs=1e-9)
        tests = curves["models"][model]["expected_test"]
        assert tests == pytest.approx(list(expected - unit * 0.01), abs=1e-9)
    assert curves["winner"]["model"] == "BERT"


def test_a_file_a_model_and_a_named_column_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeper.workflows.importing.build_report", lambda root: root)
    (tmp_path / "tables").mkdir()
    for model, values in SCORES.items():
        write_csv(tmp_path / "tables" / f"{model}.csv", [{"val_acc": v, "test_acc": v} for v in values])
    files = [str(tmp_path / "tables" / f"{model}.csv") for model in SCORES]
    for name, source in (("folder", str(tmp_path / "tables")), ("files", files)):
        assert import_results(source, "csv", tmp_path / name).num_trials == {"BERT": 40, "MiniLM": 40}
    wide = write_csv(
        tmp_path / "wide.csv", [dict(zip(SCORES, pair, strict=True)) for pair in zip(*SCORES.values(), strict=True)]
    )
    done = import_results(wide, "csv", tmp_path / "wide", ["value=BERT,MiniLM", "metric=accuracy"])
    assert done.num_trials == {"BERT": 40, "MiniLM": 40}
    assert done.columns.goal == "maximize"


def test_rows_without_a_score_are_failed_trials_whatever_word_stands_there(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeper.workflows.importing.build_report", lambda root: root)
    cells = ["0.5", "NaN", "n/a", "", "diverged", "inf", "OOM", "0.7"]
    (tmp_path / "t.csv").write_text("model,val_f1\n" + "".join(f"a,{cell}\n" for cell in cells))
    import_results(str(tmp_path / "t.csv"), "csv", tmp_path / "out")
    trials = load_results(tmp_path / "out").trials
    assert trials.column("value").to_pylist() == [0.5, None, None, None, None, None, None, 0.7]
    assert trials.column("state").to_pylist() == ["COMPLETE", *["FAIL"] * 6, "COMPLETE"]
    assert trials.column("reason")[4].as_py() == "diverged"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"model": m, "val_acc": v} for m, v in (("a", 0.5), ("b", 50.0))], "one unit.*fractions for a only"),
        ([{"model": "a", "val_acc": 0.5, "test_acc": 48.0}], "validation and test scores must be in one unit"),
        ([{"model": "a", "dataset": d, "val_acc": 0.5} for d in "xy"], "one data set, got x, y; .*--where dataset=x"),
    ],
)
def test_what_must_not_be_mixed_is_refused_with_a_remedy(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        import_results(write_csv(tmp_path / "t.csv", rows), "csv", tmp_path / "out")


def test_only_the_rows_asked_for_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeper.workflows.importing.build_report", lambda root: root)
    rows = [{"model": "a", "dataset": d, "val_acc": v} for d, v in (("x", 0.5), ("y", 0.6), ("x", 0.7))]
    source = write_csv(tmp_path / "t.csv", rows)
    assert import_results(source, "csv", tmp_path / "out", where=["dataset=x"]).num_trials == {"a": 2}
    with pytest.raises(InputError, match="must be COLUMN=VALUE of the table, got x, y"):
        import_results(source, "csv", tmp_path / "no", where=["dataset=z"])


def as_seeds(rows):
    return [{**r, "val_accuracy": r["val_accuracy"] + s, "random_state": n} for r in rows for n, s in enumerate((-0.02, 0.0, 0.02))]  # fmt: skip


def as_metrics_and_splits(rows):
    return [
        {"model": r["model"], "learning_rate": r["learning_rate"], "split": split, "metric": metric}
        | {"score": r[f"{split}_accuracy"] * share}
        for r in rows for split in ("val", "test") for metric, share in (("accuracy", 1.0), ("f1", 0.5))
    ]  # fmt: skip


def as_folds(rows):
    return [
        {"estimator": r["model"], "param_C": r["learning_rate"], "params": "{'C': 1}", "split0_test_score": 0.1}
        | {"mean_test_score": r["val_accuracy"], "std_test_score": 0.01, "rank_test_score": 1, "mean_fit_time": 2.5}
        for r in rows
    ]


def as_lists(rows):
    return [
        {"model": r["model"], "config": json.dumps({"lr": r["learning_rate"]})}
        | {"val_acc_curve": [0.1, r["val_accuracy"], 0.2], "test_acc_curve": [0.0, r["test_accuracy"], 0.9]}
        for r in rows
    ]


@pytest.mark.parametrize(
    ("reshape", "mapping", "param", "note"),
    [
        (as_seeds, [], "learning_rate", "with 3 seeds each"),
        (as_metrics_and_splits, ["value=val_accuracy"], "learning_rate", "One row a split"),
        (as_folds, [], "C", "validation folds"),
        (as_lists, [], "lr", ""),
    ],
)
def test_tables_of_other_shapes_give_the_curves_of_the_plain_one(tmp_path, reshape, mapping, param, note):
    pq.write_table(pa.Table.from_pylist(reshape(table())), tmp_path / "t.parquet")
    done = import_results(str(tmp_path / "t.parquet"), "parquet", tmp_path / "out", mapping)
    found = curves_of(tmp_path / "out")
    assert found["metric"] in ("accuracy", "score")
    for model, values in SCORES.items():
        assert found["models"][model]["expected_best"]["v"] == pytest.approx(
            expected_best(values, range(1, 41)).tolist()
        )
    if reshape is not as_folds:
        assert found["models"]["BERT"]["expected_test"][-1] == pytest.approx(
            found["models"]["BERT"]["expected_best"]["v"][-1] - 0.01
        )
        assert found["leads_test"] == found["leads"], "test is validation less a constant"
        assert (
            "On test, the trial that validation chooses among 40"
            in (tmp_path / "out" / "report" / "report.md").read_text()
        )
    assert list(done.columns.params) == [param] or param in done.columns.params
    assert note in " ".join(done.notes)


def test_numbers_written_as_text_and_json_by_model_are_read(tmp_path):
    rows = {model: [{"val_acc": f"{100 * v:.2f}%", "hparams": str({"lr": 0.1})} for v in values] for model, values in SCORES.items()}  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps(rows))
    done = import_results(str(tmp_path / "t.json"), "jsonl", tmp_path / "out")
    assert done.num_trials == {"BERT": 40, "MiniLM": 40}
    assert list(done.columns.params) == ["lr"]
    assert curves_of(tmp_path / "out")["models"]["BERT"]["expected_best"]["v"][-1] == pytest.approx(
        100 * expected_best(SCORES["BERT"], [40])[0]
    )


def test_a_seed_that_failed_fails_its_configuration_and_one_file_may_be_one_models(tmp_path):
    rows = [
        {"lr": lr, "seed": seed, "val_f1": float("nan") if (lr, seed) == (0.1, 1) else 0.5, "seconds": 3}
        for lr in (0.1, 0.2) for seed in (0, 1)
    ]  # fmt: skip
    done = import_results(write_csv(tmp_path / "bert.csv", rows), "csv", tmp_path / "out", ["model="])
    assert done.num_trials == {"bert": 2}
    trials = load_results(tmp_path / "out").trials
    assert trials.column("state").to_pylist() == ["FAIL", "COMPLETE"]
    assert trials.column("elapsed_seconds").to_pylist() == [6, 6]
    done = import_results(str(tmp_path / "bert.csv"), "csv", tmp_path / "all", ["model=", "trial_id="])
    assert done.num_trials == {"bert": 4}
