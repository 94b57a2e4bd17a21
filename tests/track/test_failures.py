"""What tracking could not do stands in the ledger, the manifest and the report, and costs the study nothing."""

from __future__ import annotations

import json

import pytest
import simulated
import tiny

from sweeper.spec.study import TrackingSpec
from sweeper.store.ledger import Ledger
from sweeper.store.manifest import read_manifest
from sweeper.workflows import execute as execution
from sweeper.workflows.study import Study

pytestmark = pytest.mark.fault  # a process with a time limit: not beside other tests


BROKEN = """
class Broken:
    def open_study(self, study):
        raise RuntimeError("the service is gone")
"""


def test_a_failure_of_tracking_is_in_manifest_and_report(tmp_path, monkeypatch):
    study = simulated.make_study(tmp_path / "s", tiny.save_checkpoints(tmp_path / "models"), tmp_path / "results")
    simulated.session(study)
    monkeypatch.setattr(
        "sweeper.workflows.export.write_best", lambda *_: None
    )  # nothing was trained: there are no weights
    tracking = TrackingSpec(plugins={"broken_tracker:Broken": {}})
    study = Study(**{**vars(study), "spec": study.spec.model_copy(update={"tracking": tracking})})
    (tmp_path / "broken_tracker.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    for _ in range(2):
        execution.execute(study, lambda: False)
    notes = [event.payload["text"] for event in Ledger.read(study.paths) if event.kind == "note"]
    failure = "tracking: Broken: the service is gone"
    assert [note for note in notes if note.startswith("tracking")] == [
        failure,
        f"tracking is incomplete; later: sweeper track {study.paths.root}",
    ], "each once, however often the study is reported"
    assert failure in read_manifest(study.paths).notes
    assert failure in (study.paths.report / "report.md").read_text()
    assert json.dumps(failure)[1:-1] in (study.paths.report / "index.html").read_text()
