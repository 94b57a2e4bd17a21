"""A study whose results lie in an object store, with curves in the place of lanes; killed, moved to another machine."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import simulated
import stubs3
import tiny

import sweeper
from sweeper.core.trial import Segment, TrialKind, TrialSpec
from sweeper.engine.messages import NextEpoch, Start, Test
from sweeper.engine.worker_config import WorkerConfig
from sweeper.store import lease, storage
from sweeper.store.logs import log_of
from sweeper.store.paths import ResultPaths
from sweeper.train.options import TrainOptions
from sweeper.workflows.inspect import study_status
from sweeper.workflows.manifest import changes
from sweeper.workflows.results import load_results
from sweeper.workflows.study import provisional, settle
from sweeper.workflows.sweep import study_file


class Killed(BaseException):
    """The end of a process, as far as one process can play it."""


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "planted-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(storage, "PAUSES", (0.01,))
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.2)
    with stubs3.serving() as (objects, address):
        yield objects, f"s3://bucket/results?scheme=http&endpoint_override={address}"


def session(spec, die_after=None):
    """One session of a run on a machine of its own, which may die after so many events."""
    with provisional(spec) as proposed:
        assert changes(proposed) == []
        study = settle(proposed)
    written = []

    def dying(ledger):
        log = ledger._log
        append = log.append

        def counted(first, lines):
            append(first, lines)
            written.append(first)
            if len(written) == die_after:
                log._lease._stop.set()
                log._lease._thread.join()
                log.close = lambda: None
                raise Killed

        log.append = counted

    try:
        simulated.session(study, dying)
    except Killed:
        return None
    return study


def test_a_study_that_loses_its_machine_again_and_again_ends_as_if_nothing_had_happened(
    store, checkpoints, monkeypatch, tmp_path
):
    objects, url = store
    (tmp_path / "study").mkdir()
    path = tiny.write_study(tmp_path / "study", checkpoints, models=("resnet",), num_trials=2, max_epochs=2)
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "undisturbed"))
    calm = sweeper.load_study(path, ["name=calm", f"storage_path={url}"])
    assert session(calm) is not None
    expected = simulated.table_rows(ResultPaths.of(url, "calm").url)
    spec = sweeper.load_study(path, ["name=study", f"storage_path={url}"])
    place = ResultPaths.of(url, "study").url
    done = None
    for machine in range(12):
        name = f"machine-{machine}"
        monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / name))
        monkeypatch.setattr(lease, "myself", lambda name=name: {"host": name, "pid": 1, "started": "1"})
        if machine:  # a new machine knows nothing but the URL
            spec = sweeper.load_study(study_file(place))
            assert study_status(place).phase in ("search", "confirmation", "test", "report")
        done = session(spec, die_after=6)
        shutil.rmtree(tmp_path / name / "runs")
        if done:
            break
    assert done
    assert machine > 1
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "reader"))
    result = load_results(place)
    assert simulated.table_rows(place) == expected
    assert len(result.manifest.test_openings) == 1
    assert study_status(place).phase == "report"
    assert log_of(ResultPaths.at(place)).holder() is None
    everything = b"".join(objects.objects.values()) + json.dumps(list(objects.objects)).encode()
    assert b"planted" not in everything


def trained(study, trial, worker, epochs):
    """Let a lane train some epochs; returns where it went on from and the measurements."""
    started = worker.handle(Start(Segment(trial=trial)))
    found = [worker.handle(NextEpoch()).measurement for _ in range(epochs)]
    return started, [(m.epoch, m.train_loss, m.validation_loss, m.metrics) for m in found]


def test_a_trial_goes_on_from_its_snapshot_on_a_node_that_shares_no_disk(store, checkpoints, monkeypatch, tmp_path):
    _, url = store

    def node(name):
        monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / name))
        return WorkerConfig(
            spec=study.spec, paths=study.paths, options=TrainOptions(device="cpu", precision="fp32"), cpus=1
        ).start()

    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "driver"))
    path = tiny.write_study(tmp_path, checkpoints, models=("resnet",), num_trials=1, max_epochs=3)
    overrides = [f"storage_path={url}", "training.snapshot_seconds=0"]
    with provisional(sweeper.load_study(path, overrides)) as proposed:
        study = settle(proposed)
    params = study.spaces["resnet"].active(study.spaces["resnet"].default)
    trial = TrialSpec(
        trial_id="resnet-tuned-c00",
        number=0,
        model="resnet",
        params=params,
        seed=7,
        max_epochs=3,
        kind=TrialKind.CONFIRM,
        config="tuned",
    )
    calm = replace(trial, trial_id="calm")
    first = node("first")
    _, expected = trained(study, calm, first, 3)
    _, before = trained(study, trial, first, 2)
    shutil.rmtree(tmp_path / "first")
    second = node("second")
    started, after = trained(study, trial, second, 1)
    assert started.from_epoch == 2
    assert before + after == expected
    shutil.rmtree(tmp_path / "second" / "runs")
    tested = node("third").handle(Test(trial))
    assert 0 <= tested.metrics["accuracy"] <= 1
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "driver"))
    part = study.paths.predictions_part(trial.trial_id)
    assert not part.exists()
    assert study.paths.storage.obtain(part)
    assert pq.read_table(part).num_rows == tested.num_examples
