"""The set that may be forgotten: part of the plan, and no danger to the test."""

from __future__ import annotations

import pytest
import tiny

import sweeper
from sweeper.core.trial import Segment, TrialKind, TrialSpec
from sweeper.data.prepare import load_prepared, retention_folder
from sweeper.engine import worker as workers
from sweeper.engine.messages import Measured, NextEpoch, Start, Test, Tested
from sweeper.engine.worker_config import WorkerConfig
from sweeper.train.options import TrainOptions
from sweeper.workflows.study import provisional, settle


def settled(folder, checkpoints, classes):
    """The study with a retention set of these digits, its data where lanes read them."""
    folder.mkdir(exist_ok=True)
    path = tiny.write_study(folder, checkpoints, models=("vit",), num_trials=1)
    text = path.read_text()
    if classes is not None:
        entry = f'  retention: {{data: "builtin:digits?classes={classes}", max_examples: 60}}\n'
        path.write_text(text.replace("  data:", f"{entry}  data:"))
    with provisional(sweeper.load_study(path)) as draft:
        return settle(draft)


def test_another_set_is_another_plan_and_is_put_where_lanes_read_it(tmp_path, checkpoints):
    without = settled(tmp_path / "study", checkpoints, None)
    assert "retention_fingerprint" not in without.plan.content, "plans from before there was such a set stay the same"
    assert not retention_folder(without.paths.data).exists()
    low = settled(tmp_path / "study", checkpoints, "0-1")
    found = load_prepared(retention_folder(low.paths.data)).fingerprint
    assert low.plan.content["retention_fingerprint"] == found
    other = settled(tmp_path / "study", checkpoints, "2-3")
    assert other.plan.plan_hash != low.plan.plan_hash
    assert load_prepared(retention_folder(other.paths.data)).fingerprint != found
    assert other.plan.content["data_fingerprint"] == low.plan.content["data_fingerprint"]


def test_a_measurement_that_fails_costs_no_test_score(tmp_path, checkpoints, monkeypatch, caplog):
    study = settled(tmp_path / "study", checkpoints, "0-1")
    options = TrainOptions(device="cpu", precision="fp32")
    worker = WorkerConfig(spec=study.spec, paths=study.paths, options=options, cpus=1).start()
    params = study.spaces["vit"].active(study.spaces["vit"].default)
    about = {"trial_id": "vit-tuned-c00", "number": 0, "model": "vit", "params": params, "seed": 1, "max_epochs": 1}
    trial = TrialSpec(**about, kind=TrialKind.CONFIRM, config="tuned")
    worker.handle(Start(Segment(trial=trial)))
    assert isinstance(worker.handle(NextEpoch()), Measured)
    well = worker.handle(Test(trial))
    assert set(well.retention) == {"metric", "before", "after"}

    def fails(*_):
        raise MemoryError("no room for the logits")

    monkeypatch.setattr(workers, "retained", fails)
    ill = worker.handle(Test(trial))
    assert isinstance(ill, Tested)
    assert ill.metrics == well.metrics
    assert ill.retention == {}
    assert "no room for the logits" in caplog.text
    monkeypatch.setattr(workers, "retained", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        worker.handle(Test(trial))
