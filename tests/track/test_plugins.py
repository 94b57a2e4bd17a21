"""A tracker of another package: found by its entry point, held to the conformance suite, and harmless when it fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import studies

from sweeper.core.errors import InputError
from sweeper.spec.load import load_study
from sweeper.spec.study import TrackingSpec
from sweeper.testing.tracker import TrackerConformance
from sweeper.workflows.tracking import Tracking

PACKAGE = '''
import json
from pathlib import Path


class Notebook:
    """A file a trial, written anew each time."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def open_study(self, study):
        self.folder.mkdir(parents=True, exist_ok=True)

    def update_trial(self, trial):
        record = trial.record
        if record.state.value != "WAITING":
            text = json.dumps([m.epoch for m in record.measurements])
            (self.folder / record.spec.trial_id).write_text(text)

    def update_study(self, report):
        pass

    def close(self):
        return f"notes are in {self.folder}"
'''


@pytest.fixture
def package(tmp_path_factory, monkeypatch):
    """An installed distribution, as pip leaves it; on the path of this process and of its children."""
    home = tmp_path_factory.mktemp("site")
    (home / "notebook_tracker.py").write_text(PACKAGE)
    info = home / "notebook_tracker-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: notebook-tracker\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sweeper.trackers]\nnotebook = notebook_tracker:Notebook\n")
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.setenv("PYTHONPATH", str(home))
    yield
    sys.modules.pop("notebook_tracker", None)


def read(folder):
    return {path.name: json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())}


class TestNotebook(TrackerConformance):
    @pytest.fixture(autouse=True)
    def needs_package(self, package):
        pass

    def make(self, root):
        from notebook_tracker import Notebook

        return Notebook(root / "notes")

    def epochs(self, root):
        return read(root / "notes")


def test_an_entry_point_is_a_tracker_and_one_that_cannot_be_made_harms_no_other(tmp_path, package):
    paths = studies.prepare(tmp_path / "demo")
    studies.write(paths, studies.story(num_trials=2))
    plugins = {"notebook": {"folder": str(tmp_path / "notes")}, "notebook_tracker:Gone": {}}
    said = []
    with Tracking(paths, TrackingSpec.model_validate({"plugins": plugins}), said.append) as tracking:
        tracking.start()
        notes = tracking.finish()
    assert read(tmp_path / "notes") == studies.expected(paths)
    assert "notebook_tracker:Gone" in notes[0]
    assert f"notes are in {tmp_path / 'notes'}" in said


def test_a_tracker_that_no_package_offers_is_refused_with_those_that_are_there(tmp_path, package):
    paths = studies.prepare(tmp_path / "demo", study='{"plugins": {"notebok": {}}}')
    with pytest.raises(InputError, match=r"tracking\.plugins.*notebok.*installed: notebook"):
        load_study(paths.study)


def test_credentials_in_an_address_are_refused(tmp_path):
    for section in ({"mlflow": {"tracking_uri": "http://me:secret@host"}}, {"wandb": {"host": "https://key@host"}}):
        paths = studies.prepare(tmp_path / "demo", study=json.dumps(section))
        with pytest.raises(InputError, match="tracking") as caught:
            load_study(paths.study)
        assert "secret" not in str(caught.value), "the refusal itself shows the value"
