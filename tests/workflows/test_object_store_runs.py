"""A study whose results lie in an object store, with curves in the place of lanes; killed, moved to another machine."""

from __future__ import annotations

import json
import shutil

import pytest
import simulated
import stubs3
import tiny

import sweeper
from sweeper.store import lease, storage
from sweeper.store.logs import log_of
from sweeper.store.paths import ResultPaths
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
        done = session(spec, die_after=7)
        shutil.rmtree(tmp_path / name / "runs")
        if done:
            break
    assert done
    assert machine > 2
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "reader"))
    result = load_results(place)
    assert simulated.table_rows(place) == expected
    assert len(result.manifest.test_openings) == 1
    assert study_status(place).phase == "report"
    assert log_of(ResultPaths.at(place)).holder() is None
    everything = b"".join(objects.objects.values()) + json.dumps(list(objects.objects)).encode()
    assert b"planted" not in everything
