"""Every tracker passes the same conformance suite, against its own files."""

from __future__ import annotations

import json
import shutil

import pytest

from sweeper.core.trial import TrialState
from sweeper.testing.tracker import TrackerConformance, life_of, study_info
from sweeper.track.base import trial_tags
from sweeper.track.mlflow import MlflowTracker
from sweeper.track.tensorboard import TensorBoardTracker
from sweeper.track.wandb import WandbTracker, effective_mode, redact
from sweeper.track.wandb_content import WandbOptions
from sweeper.track.wandb_files import run_files


class TestWandbOffline(TrackerConformance):
    def make(self, root):
        return WandbTracker(WandbOptions(project="p"), "offline")

    def epochs(self, root):
        found = {}
        for file in run_files(root / "wandb"):
            assert file.finished
            if file.job_type != "report":
                assert file.name not in found, "a trial has one run file"
                found[file.name] = [row["epoch"] for row in file.rows]
        return found


class TestTensorBoard(TrackerConformance):
    def make(self, root):
        return TensorBoardTracker()

    def epochs(self, root):
        return {
            home.name: sorted({step for tag, step, _ in scalars(home) if tag == "accuracy"})
            for home in sorted((root / "tensorboard").iterdir())
            if home.name != "study"
        }


class TestMlflow(TrackerConformance):
    @pytest.fixture(autouse=True)
    def needs_mlflow(self):
        pytest.importorskip("mlflow")
        pytest.importorskip("sqlalchemy")

    @pytest.fixture(scope="class")
    def empty_store(self, tmp_path_factory):
        """A store without runs: MLflow takes seconds to make one."""
        from mlflow.tracking import MlflowClient

        path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
        MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
        return path

    @pytest.fixture(autouse=True)
    def starts_empty(self, empty_store):
        self.empty_store = empty_store

    def make(self, root):
        if not (root / "mlflow.db").exists():
            shutil.copy(self.empty_store, root)
        return MlflowTracker()

    def epochs(self, root):
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
        runs = client.search_runs([client.get_experiment_by_name("conformance").experiment_id])
        found = {}
        for run in runs:
            if "mlflow.parentRunId" in run.data.tags:
                history = client.get_metric_history(run.info.run_id, "accuracy") if run.data.metrics else []
                assert run.info.run_name not in found
                found[run.info.run_name] = [metric.step for metric in history]
        return found


def scalars(home):
    """Read event files back with the writer's own protobuf: records of length, crc, data, crc."""
    import struct

    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(home.rglob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += 12 + length + 4
    return found


def test_tensorboard_holds_every_epoch_once(tmp_path):
    tracker = TensorBoardTracker()
    tracker.open_study(study_info(tmp_path))
    for _ in range(2):
        for state in life_of(0, TrialState.COMPLETE):
            tracker.update_trial(state)
    steps = [step for tag, step, _ in scalars(tmp_path / "tensorboard" / "bert-t0000") if tag == "accuracy"]
    assert steps == [1, 2, 3]


def test_a_run_synced_by_hand_is_never_written_again_from_its_beginning(tmp_path):
    life = life_of(0, TrialState.COMPLETE)
    for states in (life[:4], life):  # 2 epochs are known, uploaded with `wandb sync`, then the trial goes on
        tracker = WandbTracker(WandbOptions(project="p"), "offline")
        tracker.open_study(study_info(tmp_path))
        for state in states:
            tracker.update_trial(state)
        tracker.close()
        for file in run_files(tmp_path / "wandb"):
            file.mark_synced()
    files = run_files(tmp_path / "wandb")
    assert [[(row["_step"], row["epoch"]) for row in file.rows] for file in files] == [[(1, 1), (2, 2)], [(3, 3)]]


def test_a_run_that_was_online_is_left_to_the_server_when_offline(tmp_path):
    """`wandb sync` appends: an offline copy of a run that the server half knows would double its epochs."""
    life = life_of(0, TrialState.COMPLETE)
    tracker = WandbTracker(WandbOptions(project="p"), "offline")
    tracker.open_study(study_info(tmp_path))
    for state in life[:4]:
        tracker.update_trial(state)
    tracker.close()
    (file,) = run_files(tmp_path / "wandb")
    (file.path.parent / "began").touch()
    file.path.parent.rename(file.path.parent.with_name(file.path.parent.name.removeprefix("offline-")))
    tracker = WandbTracker(WandbOptions(project="p"), "offline")
    tracker.open_study(study_info(tmp_path))
    tracker.update_trial(life[-1])
    assert "sweeper track" in tracker.close()
    assert len(run_files(tmp_path / "wandb")) == 1


def test_a_file_cut_off_in_the_middle_is_read_to_its_last_whole_record(tmp_path):
    tracker = WandbTracker(WandbOptions(project="p"), "offline")
    tracker.open_study(study_info(tmp_path))
    tracker.update_trial(life_of(0, TrialState.COMPLETE, num_epochs=300)[-1])
    (whole,) = run_files(tmp_path / "wandb")
    assert [row["epoch"] for row in whole.rows] == list(range(1, 301))
    assert whole.path.stat().st_size > 32 * 1024, "records must cross a block"
    content = whole.path.read_bytes()
    for size in (0, 3, 7, 100, 32 * 1024 - 3, 32 * 1024 + 5, len(content) - 1):
        whole.path.write_bytes(content[:size])
        (cut,) = run_files(tmp_path / "wandb")
        assert not cut.finished
        assert [row["epoch"] for row in cut.rows] == list(range(1, len(cut.rows) + 1))
    tracker = WandbTracker(WandbOptions(project="p"), "offline")  # and is written anew
    tracker.open_study(study_info(tmp_path))
    tracker.update_trial(life_of(0, TrialState.COMPLETE, num_epochs=300)[-1])
    (again,) = run_files(tmp_path / "wandb")
    assert len(again.rows) == 300
    assert again.finished


def test_tags_say_model_state_rung_and_default(tmp_path):
    study = study_info(tmp_path)
    assert trial_tags(study, life_of(0, TrialState.COMPLETE)[-1]) == ["bert", "COMPLETE", "rung-2", "default"]
    assert trial_tags(study, life_of(1, TrialState.PRUNED, num_epochs=1)[-1]) == ["bert", "PRUNED", "rung-1"]


@pytest.mark.parametrize(
    ("asked", "environment", "mode"),
    [
        (None, {}, "online"),
        (None, {"WANDB_MODE": "offline"}, "offline"),
        (None, {"WANDB_MODE": "dryrun"}, "offline"),
        (None, {"WANDB_MODE": "shared"}, "shared"),
        (None, {"WANDB_DISABLED": "true"}, "disabled"),
        ("online", {"WANDB_MODE": "offline"}, "online"),
        ("disabled", {"WANDB_MODE": "online"}, "disabled"),
    ],
)
def test_the_study_file_decides_before_the_environment(asked, environment, mode):
    assert effective_mode(asked, environment) == mode


def test_keys_never_stand_in_a_message():
    key = "0123456789abcdef0123456789abcdef01234567"
    assert key not in redact(f"bad key {key}!", {})
    assert "local-" + key not in redact(f"local-{key}", {})
    assert "my-own-secret" not in redact("x my-own-secret y", {"WANDB_API_KEY": "my-own-secret"})
    assert redact(json.dumps({"sha": "abc"}), {}) == '{"sha": "abc"}'
