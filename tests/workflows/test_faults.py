"""Faults of the machine with their defined outcomes; those of lanes are in tests/engine, random ones in test_chaos."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import simulated

from sweeper.core.errors import RunFailedError, StopRequested, is_of_storage
from sweeper.core.objective import Objective
from sweeper.core.trial import Segment, TrialKind, TrialSpec
from sweeper.engine.lanes import _guarded
from sweeper.engine.messages import Failed, Measured, NextEpoch, Start, Started, StepReport
from sweeper.engine.worker_config import WorkerConfig
from sweeper.store.ledger import Ledger
from sweeper.store.paths import ResultPaths
from sweeper.store.state import StudyState
from sweeper.store.temporary import temporary_folder
from sweeper.train.options import TrainOptions
from sweeper.workflows.book import Book
from sweeper.workflows.conductors import ConfirmConductor
from sweeper.workflows.sweep import _signals


@contextmanager
def small_disk(folder, kilobytes):
    """A real file system of this size; yields a function that changes the size."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs needs root and the right to mount: {done.stderr.strip()}")

    def resize(size):
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(folder)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_real_full_disk_ends_a_run_with_one_line_and_a_resume_is_exact(checkpoints, tmp_path):
    calm = simulated.make_study(tmp_path / "study", checkpoints, tmp_path / "calm", num_trials=6)
    simulated.session(calm)
    with small_disk(tmp_path / "disk", 10_000) as resize:
        study = simulated.make_study(tmp_path / "study", checkpoints, tmp_path / "disk", num_trials=6)
        used = int(subprocess.check_output(["du", "-sk", str(tmp_path / "disk")]).split()[0])
        stops = 0
        for room in range(8, 200, 8):
            resize(used + room)
            said = None
            try:
                simulated.session(study)
            except RunFailedError as error:
                said = str(error)
            if said is None:
                break
            stops += 1
            assert "No space left on device; what is done is kept: mend the storage" in said
            assert "\n" not in said
        assert stops >= 3
        assert simulated.table_rows(study.paths.root) == simulated.table_rows(calm.paths.root)
        assert not study.paths.lock.exists()


def test_a_lane_on_a_full_disk_goes_on_without_snapshots_and_blames_no_trial(checkpoints, tmp_path):
    with small_disk(tmp_path / "disk", 40_000) as resize:
        study = simulated.make_study(tmp_path / "study", checkpoints, tmp_path / "disk")
        worker = WorkerConfig(
            spec=study.spec.model_copy(
                update={"training": study.spec.training.model_copy(update={"snapshot_seconds": 0})}
            ),
            paths=study.paths,
            options=TrainOptions(device="cpu", precision="fp32"),
            cpus=1,
        ).start()
        trial = TrialSpec(
            trial_id="resnet-tuned-c00",
            number=0,
            model="resnet",
            params=study.spaces["resnet"].active(study.spaces["resnet"].default),
            seed=1,
            max_epochs=2,
            kind=TrialKind.CONFIRM,
            config="tuned",
        )
        assert not isinstance(_guarded(worker, Start(Segment(trial=trial)), 1), Failed)
        resize(int(subprocess.check_output(["du", "-sk", str(tmp_path / "disk")]).split()[0]) + 4)
        first = _guarded(worker, NextEpoch(), 1)
        assert isinstance(first, Measured), first
        assert list(study.paths.snapshots_root.rglob("*.safetensors")) == []
        second = _guarded(worker, NextEpoch(), 1)  # the last epoch's weights must be written
        assert isinstance(second, Failed)
        assert second.is_of_storage, second
        with Ledger.open(ResultPaths(tmp_path / "ledger")) as ledger:
            book = Book(ledger, StudyState(), study.objective, num_workers=1)
            conductor = ConfirmConductor(book, [trial], lambda: False)
            conductor.next()
            with pytest.raises(RunFailedError, match="mend the storage, then resume"):
                conductor.take(StepReport(trial_id=trial.trial_id, attempt=0, outcome=second))
            assert not book.state.trials[trial.trial_id].state.is_final


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), True),
        (shutil.Error([("a", "b", str(OSError(28, "No space left on device", "b")))]), True),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (OSError(13, "Permission denied"), False),
        (FileNotFoundError(2, "No such file"), False),
        (ValueError("28"), False),
    ],
)
def test_errors_of_storage_are_told_from_others(error, expected):
    assert is_of_storage(error) is expected


def test_the_first_signal_is_a_wish_and_a_second_ctrl_c_an_order():
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        with suppress(StopRequested), _signals() as interrupted:
            assert not interrupted()
            signal.raise_signal(number)
            assert interrupted()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(number) is before


def test_sessions_that_are_killed_use_up_no_retries_and_lanes_that_die_without_progress_do(tmp_path):
    paths = ResultPaths(tmp_path / "ledger")
    run = TrialSpec(
        trial_id="m-tuned-c00", number=0, model="m", params={}, seed=1, max_epochs=4, kind=TrialKind.CONFIRM
    )

    def resumed(events=lambda book: None):
        with Ledger.open(paths) as ledger:
            book = Book(ledger, StudyState.replay(ledger.events()), Objective("accuracy", "maximize"), num_workers=1)
            assignment = ConfirmConductor(book, [run], lambda: False).next()
            book.started(run.trial_id, assignment.attempt, Started(node="n", from_epoch=0))
            events(book)
        return assignment

    attempts = [resumed() for _ in range(6)]
    assert [given.attempt for given in attempts] == [0, 1, 2, 3, 4, 5]
    assert {given.deaths for given in attempts} == {0}

    def died(book):
        book.write("retry", trial_id=run.trial_id, attempt=9, reason="killed")

    resumed(died)
    resumed(died)
    assert resumed().deaths == 2
    resumed(lambda book: book.measured(run.trial_id, 9, next(simulated.curve(run))))
    given = resumed()
    assert (given.deaths, given.epochs) == (0, 1)


CHILD = """
import time
from sweeper.store.temporary import temporary_folder
with temporary_folder() as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_in_the_temporary_folder_goes_with_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stranger = tmp_path / "sweeper-notes-of-a-user"
    stranger.mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, env=environment)
    left = Path(child.stdout.readline().strip())
    with temporary_folder():
        assert left.is_dir(), "its process lives"
    child.kill()
    child.wait()
    with temporary_folder() as mine:
        assert not left.exists()
        assert mine.is_dir()
    assert list(tmp_path.iterdir()) == [stranger]
