from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.core.errors import InputError
from sweeper.core.objective import Objective
from sweeper.core.trial import Measurement, TrialKind, TrialSpec, TrialState
from sweeper.store.ledger import Ledger, LedgerTail
from sweeper.store.lock import holder
from sweeper.store.paths import ResultPaths
from sweeper.store.state import StudyState, encode_measurement, encode_spec
from sweeper.store.tables import read_tables, write_predictions, write_tables

OBJECTIVE = Objective("acc", "maximize")


def spec(number=0, **more):
    fields = {"trial_id": f"m-t{number:04d}", "number": number, "model": "m", "params": {"lr": 0.1 + number}}
    return TrialSpec(**{**fields, "seed": number, "max_epochs": 2, **more})


def measurement(epoch, value=0.5):
    return Measurement(
        epoch=epoch, train_loss=0.1, validation_loss=0.2, metrics={"acc": value}, elapsed_seconds=float(epoch)
    )


def write_story(paths):
    """A study of two trials, one confirmation run and its test."""
    with Ledger.open(paths) as ledger:
        ledger.append("study_opened", plan_hash="x", reason="run")
        for number, state in ((0, TrialState.COMPLETE), (1, TrialState.PRUNED)):
            trial = spec(number)
            ledger.append("trial_asked", **encode_spec(trial), attributes={})
            ledger.append(
                "segment_started", trial_id=trial.trial_id, attempt=0, from_epoch=0, node="n", effective={"a": 1}
            )
            ledger.append("measurement", trial_id=trial.trial_id, attempt=0, **encode_measurement(measurement(1)))
            ledger.append(
                "trial_ended",
                trial_id=trial.trial_id,
                state=state.value,
                value=0.5 if number == 0 else None,
                best_epoch=1,
                reason="",
                trace="",
                elapsed_seconds=1.0,
                device_seconds=1.0,
            )
        run = spec(0, trial_id="m-tuned-c00", kind=TrialKind.CONFIRM, config="tuned", seed=7)
        ledger.append("trial_asked", **encode_spec(run), attributes={})
        ledger.append("confirmation_frozen", trial_ids=[run.trial_id])
        ledger.append("measurement", trial_id=run.trial_id, attempt=0, **encode_measurement(measurement(1, 0.6)))
        ledger.append(
            "trial_ended",
            trial_id=run.trial_id,
            state="COMPLETE",
            value=0.6,
            best_epoch=1,
            reason="",
            trace="",
            elapsed_seconds=1.0,
            device_seconds=1.0,
        )
        ledger.append("test_opened", reason="confirmation", num_runs=1)
        ledger.append("tested", trial_id=run.trial_id, metrics={"acc": 0.55}, num_examples=2, elapsed_seconds=0.1)
    write_predictions(
        paths.predictions_part(run.trial_id),
        model="m",
        config="tuned",
        seed=7,
        example_ids=["a", "b"],
        targets=np.array([0, 1]),
        predictions=np.array([0, 0]),
        probabilities=np.array([[0.9, 0.1], [0.6, 0.4]], dtype=np.float32),
    )


def test_what_is_read_is_what_was_written(tmp_path):
    paths = ResultPaths(tmp_path)
    with Ledger.open(paths) as ledger:
        ledger.append("note", text="ä\n\u2028", values=[math.nan, math.inf, -math.inf, 0.1, 1e-300], nested={"x": None})
    payload = Ledger.read(paths)[1].payload
    assert payload["text"] == "ä\n\u2028"
    assert math.isnan(payload["values"][0])
    assert payload["values"][1:] == [math.inf, -math.inf, 0.1, 1e-300]


def test_a_ledger_torn_at_any_byte_of_its_tail_keeps_every_whole_event(tmp_path):
    paths = ResultPaths(tmp_path / "a")
    write_story(paths)
    content = paths.ledger.read_bytes()
    whole = len(Ledger.read(paths))
    start = content[:-1].rindex(b"\n") + 1
    for cut in range(start, len(content)):
        torn = ResultPaths(tmp_path / f"{cut}")
        torn.root.mkdir()
        torn.ledger.write_bytes(content[:cut])
        with Ledger.open(torn) as ledger:
            assert len(list(ledger.events())) == whole - 1
            assert bool(ledger.notes) == (cut > start)
            ledger.append("note", text="goes on")
        assert len(Ledger.read(torn)) == whole


def test_a_changed_byte_is_noticed_and_never_read_as_something_else(tmp_path):
    paths = ResultPaths(tmp_path)
    write_story(paths)
    whole = paths.ledger.read_bytes()
    before = [(event.kind, event.payload) for event in Ledger.read(paths)]

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, len(whole) - 2), st.integers(0, 7))
    def check(at, bit):
        content = bytearray(whole)
        content[at] ^= 1 << bit
        paths.ledger.write_bytes(bytes(content))
        with pytest.raises(InputError, match=r"ledger\.jsonl:"):
            Ledger.read(paths)

    check()
    assert len(before) == whole.count(b"\n")


def test_a_lost_line_is_noticed(tmp_path):
    paths = ResultPaths(tmp_path)
    write_story(paths)
    lines = paths.ledger.read_bytes().splitlines(keepends=True)
    paths.ledger.write_bytes(b"".join(lines[:3] + lines[4:]))
    with pytest.raises(InputError, match=r"ledger\.jsonl:4: .*out of order"):
        Ledger.open(paths)
    assert not paths.lock.exists()


WRITER = """
import sys
from pathlib import Path
from sweeper.store.ledger import Ledger, LedgerTail
from sweeper.store.paths import ResultPaths
with Ledger.open(ResultPaths(Path(sys.argv[1]))) as ledger:
    print("open", flush=True)
    for i in range(10**9):
        ledger.append("note", text="x" * (i % 500))
        print(i, flush=True)
"""


def test_a_killed_writer_leaves_every_event_it_had_returned_from(tmp_path):
    paths = ResultPaths(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "open\n"
    written = -1
    while written < 50:
        written = int(process.stdout.readline())
    with pytest.raises(InputError, match=f"got process {process.pid} on"):
        Ledger.open(paths)
    assert holder(paths.lock)["pid"] == process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert holder(paths.lock) is None
    with Ledger.open(paths) as ledger:
        assert any("had died with the lock" in note for note in ledger.notes)
        assert len(list(ledger.events())) >= written + 2
    assert not paths.lock.exists()


def test_a_lock_of_another_host_is_respected(tmp_path):
    paths = ResultPaths(tmp_path)
    paths.lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    with pytest.raises(InputError, match="process 1 on elsewhere"):
        Ledger.open(paths)


def test_a_full_disk_cuts_the_half_line_back(tmp_path, monkeypatch):
    paths = ResultPaths(tmp_path)
    with Ledger.open(paths) as ledger:
        ledger.append("note", text="before")
        monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            ledger.append("note", text="lost")
        monkeypatch.undo()
        ledger.append("note", text="after")
    assert [e.payload.get("text") for e in Ledger.read(paths)] == [None, "before", "after"]


def test_a_forged_time_that_no_clock_can_show_is_refused(tmp_path):
    paths = ResultPaths(tmp_path)
    with Ledger.open(paths) as ledger:
        ledger.append("note", text="x")
    first, second = paths.ledger.read_bytes().splitlines()
    body = re.sub(rb'"t":[0-9.]+', b'"t":' + 400 * b"9", second.rpartition(b',"crc"')[0]) + b"}"
    forged = body[:-1] + f',"crc":"{zlib.crc32(body):08x}"}}'.encode()
    paths.ledger.write_bytes(first + b"\n" + forged + b"\n")
    with pytest.raises(InputError, match="it is no event"):
        Ledger.read(paths)


def test_an_unknown_kind_of_event_is_refused(tmp_path):
    paths = ResultPaths(tmp_path)
    with Ledger.open(paths) as ledger:
        ledger.append("from_the_future", x=1)
    with pytest.raises(InputError, match="from_the_future"):
        StudyState.replay(Ledger.read(paths))


def test_the_tables_have_the_columns_of_the_contract(tmp_path):
    paths = ResultPaths(tmp_path)
    write_story(paths)
    write_tables(paths, StudyState.replay(Ledger.read(paths)), OBJECTIVE)
    tables = read_tables(paths)
    columns = [
        "trial_id",
        "number",
        "model",
        "state",
        "value",
        "epochs",
        "best_epoch",
        "elapsed_seconds",
        "device_seconds",
        "started_at",
        "finished_at",
        "seed",
        "node",
        "num_retries",
        "reason",
        "params",
        "effective",
    ]
    assert tables.trials.column_names == [*columns, "params_lr"]
    assert tables.trials.column("value").to_pylist() == [0.5, None]
    assert json.loads(tables.trials.column("effective")[0].as_py()) == {"a": 1}
    assert tables.measurements.column_names == [
        *("trial_id", "model", "epoch", "elapsed_seconds", "train_loss", "validation_loss", "acc")
    ]
    assert tables.confirmations.select(["config", "split", "value"]).to_pylist() == [
        {"config": "tuned", "split": "validation", "value": 0.6},
        {"config": "tuned", "split": "test", "value": 0.55},
    ]
    assert tables.predictions.column("probabilities").to_pylist()[0] == pytest.approx([0.9, 0.1])
    assert pq.read_schema(paths.trials).metadata[b"sweeper_schema"] == b"1"


def test_a_measurement_reported_again_by_a_later_attempt_is_kept_out_by_its_writer(tmp_path):
    from sweeper.workflows.book import Book

    paths = ResultPaths(tmp_path)
    with Ledger.open(paths) as ledger:
        book = Book(ledger, StudyState(), OBJECTIVE, num_workers=1)
        book.asked(spec(), {})
        book.measured("m-t0000", 0, measurement(1))
        book.measured("m-t0000", 1, measurement(1, 0.9))
    state = StudyState.replay(Ledger.read(paths))
    assert [m.metrics["acc"] for m in state.trials["m-t0000"].measurements] == [0.5]


FIXTURES = Path(__file__).parent / "fixtures"


def test_a_ledger_of_the_first_schema_is_migrated_and_means_the_same(tmp_path):
    paths = ResultPaths(tmp_path)
    old = (FIXTURES / "ledger-schema-1.jsonl").read_bytes()
    paths.ledger.write_bytes(old)
    before = Ledger.read(paths)
    assert paths.ledger.read_bytes() == old, "reading writes nothing"
    assert str(LedgerTail(paths).poll()) == str(before)
    with Ledger.open(paths) as ledger:
        assert "migrated from schema 1 to 2" in ledger.notes[0]
        ledger.append("note", text="goes on")
    after = Ledger.read(paths)
    assert str(after[:-1]) == str(before)  # by text: NaN equals nothing
    assert after[0].payload == {"schema": 2}
    state = StudyState.replay(after)
    assert all(record.state.is_final for record in state.trials.values())
    assert len(state.tested) == 8
    assert state.spent_seconds == pytest.approx(1.1457, abs=1e-3)  # as the version that wrote it said
    with Ledger.open(paths) as ledger:
        assert ledger.notes == []


def test_a_migration_that_dies_anywhere_leaves_the_old_ledger_or_the_new_one(tmp_path, monkeypatch):
    paths = ResultPaths(tmp_path)
    old = (FIXTURES / "ledger-schema-1.jsonl").read_bytes()
    for name in ("fsync", "replace"):
        paths.ledger.write_bytes(old)

        def fail(*arguments):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, name, fail)
        with pytest.raises(OSError, match="No space"):
            Ledger.open(paths)
        monkeypatch.undo()
        assert paths.ledger.read_bytes() == old
        assert not paths.lock.exists()
        assert [path.name for path in tmp_path.iterdir()] == ["ledger.jsonl"]


def test_a_ledger_of_a_later_schema_is_refused(tmp_path):
    paths = ResultPaths(tmp_path)
    body = b'{"n":0,"t":1.0,"s":0.0,"kind":"ledger_created","schema":99}'
    paths.ledger.write_bytes(body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body))
    with pytest.raises(InputError, match="schema must be at most 2, got 99"):
        Ledger.open(paths)


def test_a_clock_that_is_set_spends_and_returns_no_time(tmp_path, monkeypatch):
    paths = ResultPaths(tmp_path)
    now = iter([1e9, 2e9, 1e9, 5e9, 5e9, 0.0])
    monkeypatch.setattr("sweeper.store.ledger.time.time", lambda: next(now))
    for _ in range(2):
        with Ledger.open(paths) as ledger:
            ledger.append("study_opened", plan_hash="x", reason="run")
            ledger.append("note", text="the clock has jumped")
    assert StudyState.replay(Ledger.read(paths)).spent_seconds < 60


def test_every_cut_and_every_flipped_bit_at_a_record_boundary_is_recovered_or_refused(tmp_path):
    """At each boundary: cut there, a byte before, a byte after; every bit of the bytes around it flipped."""
    paths = ResultPaths(tmp_path)
    write_story(paths)
    whole = paths.ledger.read_bytes()
    events = Ledger.read(paths)
    boundaries = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    for number, at in enumerate(boundaries):
        for cut in (at - 1, at, at + 1):
            paths.ledger.write_bytes(whole[:cut])
            assert Ledger.read(paths) == events[: number + (cut > at)]
        for place in (at - 1, at, at + 1):
            for bit in range(8):
                if place < len(whole):
                    flipped = bytearray(whole)
                    flipped[place] ^= 1 << bit
                    paths.ledger.write_bytes(bytes(flipped))
                    try:
                        found = Ledger.read(paths)
                    except InputError as error:
                        assert re.search(r"ledger\.jsonl:\d+: ", str(error))  # noqa: PT017
                    else:  # only the last line's end may go: then the line is torn, not wrong
                        assert (place, found) == (len(whole) - 1, events[:-1])
