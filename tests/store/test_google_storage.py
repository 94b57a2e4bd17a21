"""Results on Google Cloud Storage: its own client, through pyarrow, against a stub on loopback."""

from __future__ import annotations

import json
import os
import time

import pytest
import stubgcs

from sweeper.core.errors import InputError
from sweeper.store import storage
from sweeper.store.ledger import Ledger
from sweeper.store.paths import ResultPaths

fs = pytest.importorskip("pyarrow.fs")
if not hasattr(fs, "GcsFileSystem"):
    pytest.skip("this wheel of pyarrow has no Google Cloud Storage", allow_module_level=True)


@pytest.fixture
def place(monkeypatch, tmp_path):
    """The stub's store, and a function that gives the paths of a study as a machine sees them."""
    with stubgcs.serving() as (store, address):
        key = tmp_path / "key.json"
        words = {"client_id": "id", "client_secret": "planted-secret", "refresh_token": "planted-token"}
        key.write_text(json.dumps({"type": "authorized_user", "token_uri": f"http://{address}/token", **words}))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
        monkeypatch.setattr(storage, "PAUSES", (0.01,))
        monkeypatch.setattr(storage, "GCS_RETRY_SECONDS", 1)
        url = f"gs://bucket/results?scheme=http&endpoint_override={address}"

        def paths(machine):
            monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / machine))
            return ResultPaths.of(url, "study")

        yield store, paths


def texts(paths):
    return [event.payload["text"] for event in Ledger.read(paths) if event.kind == "note"]


def test_a_ledger_goes_on_on_another_machine_and_needs_the_url_alone(place):
    store, paths = place
    with Ledger.open(paths("one")) as ledger, ledger.together():
        ledger.append("note", text="0")
        ledger.append("note", text="1")
    with Ledger.open(paths("two")) as ledger:
        ledger.append("note", text="2")
        with pytest.raises(InputError, match="only one process may write"):
            Ledger.open(paths("two"))
    assert texts(paths("three")) == list("012")
    assert paths("three").storage.get("lock.json") is None
    assert "Bearer planted" in store.tokens, "requests were signed"
    assert b"planted" not in b"".join(store.objects.values())


def test_a_folder_arrives_whole_and_leaves_whole(place):
    store, paths = place
    here = paths("one")
    folder = here.snapshots("t") / "e00001-a0"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights").write_bytes(os.urandom(3 * storage.CHUNK_BYTES // 2))
    (folder / "deep" / "empty").write_bytes(b"")
    here.storage.publish(folder)
    there = paths("two")
    twin = there.snapshots("t") / "e00001-a0"
    assert there.storage.names(there.snapshots("t")) == ["e00001-a0"]
    assert there.storage.obtain(twin)
    assert (twin / "weights").read_bytes() == (folder / "weights").read_bytes()
    assert (twin / "deep" / "empty").read_bytes() == b""
    there.storage.remove(there.snapshots_root)
    assert there.storage.names(there.snapshots("t")) == []
    assert not store.objects


def test_a_store_that_is_out_is_an_error_after_seconds_and_a_resume_goes_on(place):
    store, paths = place
    with Ledger.open(paths("one")) as ledger:
        ledger.append("note", text="before")
        store.is_out = True
        began = time.monotonic()
        with pytest.raises(OSError, match=r"gs://bucket/results/study/ledger"):
            ledger.append("note", text="lost")
        assert time.monotonic() - began < 20
        store.is_out = False
    with Ledger.open(paths("one")) as ledger:
        ledger.append("note", text="after")
    assert texts(paths("two")) == ["before", "after"]
