from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
import transformers

import sweeper
from sweeper.core.errors import ChangedWorldError, InputError, RunFailedError
from sweeper.spec.space import load_space
from sweeper.store.ledger import Ledger
from sweeper.store.paths import ResultPaths
from sweeper.testing.leaks import no_leaks, take_inventory
from sweeper.workflows.init import propose

pytestmark = pytest.mark.ray
TIMES = {"elapsed_seconds", "device_seconds", "started_at", "finished_at", "node", "num_retries"}


def rows(table):
    """The rows of a table without what only the clock decides."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in table.to_pylist()]


def differences(a, b):
    """Rows that two results do not share, table by table and in order."""
    found = []
    for name in ("trials", "measurements", "confirmations", "predictions"):
        pairs = itertools.zip_longest(rows(getattr(a, name)), rows(getattr(b, name)))
        found += [(name, one, other) for one, other in pairs if one != other]
    return found


@pytest.fixture(scope="module")
def finished(ray_session, checkpoints, tmp_path_factory):
    """A whole study on one lane."""
    folder = tmp_path_factory.mktemp("finished")
    return sweeper.run(sweeper.load_study(tiny.write_study(folder, checkpoints)))


def test_every_model_gets_the_same_effort_and_its_default_first(finished):
    trials = finished.trials.to_pylist()
    for model in ("vit", "resnet"):
        mine = [t for t in trials if t["model"] == model]
        assert [t["number"] for t in mine] == [0, 1, 2, 3]
        assert json.loads(mine[0]["params"])["learning_rate"] == 3e-3
        assert mine[0]["state"] == "COMPLETE"
        assert all(t["value"] is None for t in mine if t["state"] != "COMPLETE")


def test_confirmation_uses_fresh_seeds_and_opens_the_test_once(finished):
    confirmations = finished.confirmations.to_pylist()
    seeds = {row["seed"] for row in confirmations}
    assert len(seeds) == 2
    assert not seeds & set(finished.trials.column("seed").to_pylist())
    assert {(row["model"], row["config"], row["split"]) for row in confirmations} == {
        (m, c, s) for m in ("vit", "resnet") for c in ("tuned", "default") for s in ("validation", "test")
    }
    assert len(finished.manifest.test_openings) == 1
    kinds = [event.kind for event in Ledger.read(ResultPaths(finished.path))]
    assert kinds.count("test_opened") == 1
    assert kinds.index("confirmation_frozen") < kinds.index("test_opened") < kinds.index("tested")


def test_predictions_give_the_reported_scores(finished):
    frame = finished.predictions.to_pandas()
    scores = frame.assign(right=frame.target == frame.prediction).groupby(["model", "config", "seed"]).right.mean()
    for row in finished.confirmations.to_pylist():
        if row["split"] == "test" and row["metric"] == "accuracy":
            assert scores[row["model"], row["config"], row["seed"]] == pytest.approx(row["value"])


def test_what_ran_is_recorded_with_every_trial(finished):
    for trial in finished.trials.to_pylist():
        params, effective = json.loads(trial["params"]), json.loads(trial["effective"])
        assert effective["batch_size"] == params["batch_size"]
        assert effective["dropouts"]["dropout"] == [params["dropout"]]
        rates = effective["stages"][0]["learning_rates"]
        assert rates[max(rates, key=int)] == params["learning_rate"]


def test_the_best_checkpoint_loads_and_its_configuration_runs(finished):
    for model in ("vit", "resnet"):
        home = finished.path / "best" / model
        loaded = transformers.AutoModelForImageClassification.from_pretrained(home / "checkpoint")
        assert loaded.config.id2label == {i: str(i + 5) for i in range(5)}
        assert "model-index" in (home / "checkpoint" / "README.md").read_text()
        spec = sweeper.load_study(home / "config.yaml")
        assert load_space(spec.models[0].space).default == finished.best_params[model]


def test_a_finished_study_is_only_reported_again(finished):
    before = len(Ledger.read(ResultPaths(finished.path)))
    again = sweeper.resume(finished.path)
    assert differences(again, finished) == []
    assert len(Ledger.read(ResultPaths(finished.path))) == before


def test_nothing_is_left_behind(finished):
    deadline = time.monotonic() + 20  # processes get a moment to go
    while (left := take_inventory([finished.path]).things) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == set()


def test_one_lane_gives_the_same_trials_and_values_twice(finished, checkpoints, tmp_path):
    again = sweeper.run(sweeper.load_study(tiny.write_study(tmp_path, checkpoints)))
    assert differences(again, finished) == []


def test_a_changed_plan_is_named_and_refused(finished):
    spec = sweeper.load_study(finished.path / "study.yaml", ["search.num_trials=5", "seed=1"])
    with pytest.raises(ChangedWorldError) as caught:
        sweeper.run(spec)
    assert "search.num_trials: 4, now 5" in str(caught.value)
    assert "seed: 0, now 1" in str(caught.value)


def test_a_two_worker_lane_runs_the_same_study(ray_session, checkpoints, tmp_path):
    path = tiny.write_study(tmp_path, checkpoints, models=("resnet",), num_trials=2)
    result = sweeper.run(sweeper.load_study(path, ["training.num_workers=2"]))
    effective = [json.loads(t["effective"]) for t in result.trials.to_pylist()]
    assert {e["num_workers"] for e in effective} == {2}
    assert all(t["device_seconds"] == pytest.approx(2 * t["elapsed_seconds"]) for t in result.trials.to_pylist())
    assert result.leaderboard[0]["tuned"]["mean"] is not None


def test_failing_trials_never_end_a_sweep_unless_all_do(ray_session, checkpoints, tmp_path):
    path = tiny.write_study(tmp_path, checkpoints, models=("resnet",), num_trials=3)
    text = (tmp_path / "space.yaml").read_text()
    too_many = "  num_unfrozen_blocks: 9\n"
    (tmp_path / "space.yaml").write_text(
        text.replace("[full, head_only, gradual]", "[full, last_blocks]").replace(
            "  epochs_per_stage: {type: int, low: 1, high: 2, when: {unfreezing: gradual}}\n", too_many
        )
    )
    result = sweeper.run(sweeper.load_study(path))
    states = {json.loads(t["params"])["unfreezing"]: (t["state"], t["reason"]) for t in result.trials.to_pylist()}
    assert states["full"][0] in ("COMPLETE", "PRUNED")
    if "last_blocks" in states:
        assert states["last_blocks"][0] == "INFEASIBLE"
        assert "the model has 3 blocks, got 9" in states["last_blocks"][1]
    (tmp_path / "space.yaml").write_text("parameters: {unfreezing: last_blocks, num_unfrozen_blocks: 9}\n")
    with pytest.raises(RunFailedError, match="every trial of every model failed"):
        sweeper.run(sweeper.load_study(path, ["name=hopeless"]))


def test_budgets_of_time_and_devices_bind_and_keep_the_confirmation(ray_session, checkpoints, tmp_path):
    path = tiny.write_study(tmp_path, checkpoints, models=("resnet",), num_trials=400)
    # 7 s: room for the confirmation that is reserved even where a busy machine takes .3 s for the first epoch
    result = sweeper.run(sweeper.load_study(path, ["search.device_hours_per_model=0.002"]))
    assert 1 <= len(result.trials) < 400
    assert result.leaderboard[0]["tuned"]["mean"] is not None


def test_data_in_memory_and_a_model_of_ones_own(ray_session, tmp_path):
    import datasets
    from sklearn.datasets import load_digits

    from sweeper.data.builtin import read_builtin

    table = read_builtin("digits?classes=0-1").to_pydict()
    assert len(load_digits().data)
    data = datasets.Dataset.from_dict({"image": table["image"], "label": table["label"]})
    (tmp_path / "space.yaml").write_text(tiny.SPACE)
    spec = sweeper.StudySpec(
        name="memory",
        storage_path=str(tmp_path / "results"),
        task={"type": "image-classification", "data": {"train": "memory:", "max_train_examples": 40}},
        models=[{"name": "own", "checkpoint": "memory:"}],
        search={"num_trials": 1, "max_epochs": 2, "space": str(tmp_path / "space.yaml"), "max_concurrent_trials": 1},
        confirm={"num_seeds": 1},
    )

    def build():
        processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
        return tiny.bodies()["resnet"], processor

    result = sweeper.run(spec, datasets={"train": data}, factories={"own": build})
    assert result.leaderboard[0]["model"] == "own"


def command(*arguments):
    return [sys.executable, "-m", "sweeper.cli", *map(str, arguments)]


@pytest.fixture
def marked(monkeypatch):
    """A mark in the environment of every process that the test starts: how leaks are found."""
    monkeypatch.setenv("SWEEPER_MARK", str(os.getpid()))
    return f"SWEEPER_MARK={os.getpid()}"


SOON_NOTICED = {"RAY_health_check_period_ms": "300", "RAY_health_check_failure_threshold": "2"}
"""A raylet that does not answer is dead after a second in the place of a quarter of a minute."""


def raylet_below(driver):
    """The raylet that a driver started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = []
    for pid in parents:
        chain = pid
        while chain in parents and chain != driver:
            chain = parents[chain]
        with suppress(OSError):
            if chain == driver and b"raylet/raylet\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.fault
def test_a_killed_driver_and_a_killed_raylet_resume_to_the_identical_study(finished, checkpoints, tmp_path, marked):
    path = tiny.write_study(tmp_path, checkpoints)
    ledger = ResultPaths(tmp_path / "results" / "tiny")
    with no_leaks([ledger.root], mark=marked):
        for events, victim in ((12, "driver"), (20, "raylet")):
            process = subprocess.Popen(
                command("run", path),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | SOON_NOTICED,
            )
            deadline = time.monotonic() + 120
            while not ledger.ledger.exists() or ledger.ledger.read_bytes().count(b"\n") < events:
                assert process.poll() is None, process.stdout.read()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.kill(process.pid if victim == "driver" else raylet_below(process.pid), signal.SIGKILL)
            said, _ = process.communicate(timeout=120)
            if victim == "driver":
                assert said.endswith(f"what is done is kept: sweeper resume {ledger.root}\n"), said
        # Workers go on without their raylet until Ray notices and ends the driver, which may say why at any length
        # or not a word; the study may be done before.
        assert process.returncode in (0, 1)
        assert process.returncode == 0 or "what is done is kept" in said, said
        result = subprocess.run(command("resume", ledger.root), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert differences(sweeper.load_results(ledger.root), finished) == []
    measured = pq.read_table(ledger.measurements).select(["trial_id", "epoch"]).to_pylist()
    assert len({tuple(row.values()) for row in measured}) == len(measured)


@pytest.fixture
def importers_of_wandb(tmp_path, monkeypatch):
    """A file in which a stand-in for wandb, first on the path of all that the test starts, notes who imports it."""
    note, package = tmp_path / "importers", tmp_path / "stand-in" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        f"import traceback\nopen({str(note)!r}, 'a').writelines(traceback.format_stack())\nraise ImportError('stand-in')\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), os.environ["PYTHONPATH"]]))
    return note


@pytest.mark.fault
def test_an_interrupted_run_exits_with_130_and_says_how_to_go_on(checkpoints, tmp_path, marked, importers_of_wandb):
    path = tiny.write_study(tmp_path, checkpoints, num_trials=30)
    ledger = ResultPaths(tmp_path / "results" / "tiny").ledger
    with no_leaks(mark=marked):
        process = subprocess.Popen(command("run", path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not ledger.exists() or ledger.read_bytes().count(b"\n") < 15:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert f"sweeper run {path}" in errors
    assert not (ledger.parent / "lock.json").exists()
    status = subprocess.run(command("status", path, "--json"), capture_output=True, text=True)
    assert json.loads(status.stdout)["phase"] == "search"
    assert not importers_of_wandb.exists(), f"only the tracking process needs wandb:\n{importers_of_wandb.read_text()}"


def test_planning_and_checking_write_nothing(checkpoints, tmp_path):
    path = tiny.write_study(tmp_path, checkpoints)
    before = sorted(tmp_path.rglob("*"))
    plan = subprocess.run(command("plan", path, "--json"), capture_output=True, text=True)
    assert plan.returncode == 0, plan.stderr
    models = json.loads(plan.stdout)["models"]
    assert [m["num_trials"] for m in models] == [4, 4]
    expected, low, high = models[0]["lane_seconds"]
    assert low <= expected <= high
    check = subprocess.run(command("check", path, "--json"), capture_output=True, text=True)
    assert json.loads(check.stdout)["rows"]["train"] == 60
    assert sorted(tmp_path.rglob("*")) == before


def test_init_proposes_a_study_that_loads(checkpoints, tmp_path):
    lines = ["text,intent", *(f"example {i},{'a' if i % 5 else 'b'}" for i in range(50))]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    out = tmp_path / "study.yaml"
    done = subprocess.run(
        command("init", tmp_path / "train.csv", checkpoints["bert"], "-o", out), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    spec = sweeper.load_study(out)
    assert spec.task.metric.name == "macro_f1"
    assert spec.models[0].name == "bert"
    (tmp_path / "one.csv").write_text("text,label\na,x\nb,x\n")
    with pytest.raises(InputError, match="at least two classes"):
        propose(tmp_path / "one.csv", ["m"])
