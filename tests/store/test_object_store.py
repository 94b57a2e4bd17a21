"""Results in an object store: an S3 on loopback, real requests through pyarrow."""

from __future__ import annotations

import os
import threading
import time

import pytest
import stubs3

from sweeper.core.errors import InputError, RunFailedError
from sweeper.store import lease, segments, storage
from sweeper.store.ledger import Ledger
from sweeper.store.paths import ResultPaths

pytest.importorskip("pyarrow.fs").S3FileSystem  # noqa: B018 - wheels without S3 exist


@pytest.fixture(scope="module")
def server():
    outside = os.environ.get("SWEEPER_TEST_S3")  # HOST:PORT of another server, such as moto's
    with stubs3.serving() as (store, address):
        yield store, outside or address


@pytest.fixture
def store(server, monkeypatch, tmp_path):
    """The server's objects, and the URL of an empty prefix."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "PAUSES", (0.01, 0.02))
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.6)
    objects, address = server
    if "SWEEPER_TEST_S3" in os.environ:
        from pyarrow import fs

        fs.S3FileSystem(scheme="http", endpoint_override=address, allow_bucket_creation=True).create_dir("bucket")
    objects.fail = lambda method, path: None
    yield objects, f"s3://bucket/{tmp_path.name}-{time.monotonic_ns()}?scheme=http&endpoint_override={address}"
    objects.fail = lambda method, path: None


needs_stub = pytest.mark.skipif("SWEEPER_TEST_S3" in os.environ, reason="only the stub fails on demand")


def paths_of(url, monkeypatch=None, home=None):
    """The paths of a study; with ``home`` as another machine sees them."""
    if home is not None:
        monkeypatch.setenv("SWEEPER_CACHE", str(home))
    return ResultPaths.of(url, "study")


def hang(ledger):
    """Let the machine of a writer renew nothing any more."""
    ledger._log._lease._stop.set()
    ledger._log._lease._thread.join()


def texts(paths):
    return [event.payload.get("text") for event in Ledger.read(paths) if event.kind == "note"]


def test_what_is_read_is_what_was_written_and_another_machine_goes_on(store, monkeypatch, tmp_path):
    _, url = store
    with Ledger.open(paths_of(url)) as ledger:
        for number in range(5):
            ledger.append("note", text=f"{number}")
        assert texts(paths_of(url)) == list("01234")
    there = paths_of(url, monkeypatch, tmp_path / "elsewhere")
    assert not there.root.exists()
    with Ledger.open(there) as ledger:
        assert ledger.notes == []
        ledger.append("note", text="5")
    assert texts(there) == list("012345")
    assert len(there.ledger.read_bytes().splitlines()) == 7
    assert there.storage.get("lock.json") is None


def test_events_that_belong_together_are_one_object(store):
    _, url = store
    paths = paths_of(url)
    with Ledger.open(paths) as ledger:
        with ledger.together():
            for number in range(3):
                ledger.append("note", text=f"{number}")
            assert texts(paths) == []
        assert texts(paths) == list("012")
        ledger.append("note", text="3")
    assert texts(paths) == list("0123")
    assert len(paths.storage.keys("ledger")) == 3, "the ledger's beginning, three events, one event"


def test_a_folder_arrives_whole_or_not_at_all(store, monkeypatch, tmp_path):
    _, url = store
    here = paths_of(url)
    folder = here.snapshots("t") / "e00001-a0"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights").write_bytes(os.urandom(3 * storage.CHUNK_BYTES // 2))
    (folder / "deep" / "empty").write_bytes(b"")
    here.storage.publish(folder)
    there = paths_of(url, monkeypatch, tmp_path / "elsewhere")
    twin = there.snapshots("t") / "e00001-a0"
    assert there.storage.names(there.snapshots("t")) == ["e00001-a0"]
    assert there.storage.obtain(twin)
    assert (twin / "weights").read_bytes() == (folder / "weights").read_bytes()
    assert (twin / "deep" / "empty").read_bytes() == b""
    assert not there.storage.obtain(there.snapshots("t") / "e00002-a0")
    there.storage.remove(there.snapshots_root)
    assert there.storage.names(there.snapshots("t")) == []
    assert not twin.exists()


@needs_stub
def test_half_a_folder_and_a_damaged_one_do_not_exist(store, monkeypatch, tmp_path):
    objects, url = store
    here = paths_of(url)
    folder = here.confirmation_weights("run")
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"good")
    objects.fail = lambda method, path: 403 if method == "PUT" and "seals" in path else None
    with pytest.raises(OSError, match="confirmed/run"):
        here.storage.publish(folder)
    objects.fail = lambda method, path: None
    there = paths_of(url, monkeypatch, tmp_path / "elsewhere")
    assert not there.storage.obtain(there.confirmation_weights("run"))
    here.storage.publish(folder)
    key = next(key for key in objects.objects if key.endswith("confirmed/run/weights"))
    objects.objects[key] = b"evil"
    with pytest.raises(OSError, match="not what was published"):
        there.storage.obtain(there.confirmation_weights("run"))
    assert not there.confirmation_weights("run").exists()


def test_a_folder_that_was_published_anew_is_fetched_anew(store, monkeypatch, tmp_path):
    _, url = store
    here = paths_of(url)
    here.data.mkdir(parents=True)
    (here.data / "train").write_text("old")
    here.storage.publish(here.data)
    there = paths_of(url, monkeypatch, tmp_path / "elsewhere")
    there.storage.obtain(there.data)
    (here.data / "train").write_text("new")
    here.storage.publish(here.data)
    assert there.storage.obtain(there.data)
    assert (there.data / "train").read_text() == "new"


@needs_stub
def test_a_store_out_of_reach_ends_the_writing_and_a_resume_goes_on(store):
    objects, url = store
    with Ledger.open(paths_of(url)) as ledger:
        ledger.append("note", text="before")
        objects.fail = lambda method, path: 403 if "/ledger/" in path else None
        with pytest.raises(OSError, match="ledger/00000002"):
            ledger.append("note", text="lost")
        objects.fail = lambda method, path: None
        with pytest.raises(OSError, match="ledger/00000002"):
            ledger.append("note", text="never in its place")
    with Ledger.open(paths_of(url)) as ledger:
        ledger.append("note", text="after")
    assert texts(paths_of(url)) == ["before", "after"]


@needs_stub
def test_a_passing_failure_is_tried_again(store):
    objects, url = store
    failures = iter([500, 503, None])
    with Ledger.open(paths_of(url)) as ledger:
        objects.fail = lambda method, path: next(failures, None) if method == "PUT" and "/ledger/" in path else None
        ledger.append("note", text="late")
    assert texts(paths_of(url)) == ["late"]


def test_a_living_writer_is_respected_and_a_silent_one_replaced(store, monkeypatch):
    _, url = store
    first = Ledger.open(paths_of(url))
    monkeypatch.setattr("sweeper.store.lease.myself", lambda: {"host": "another", "pid": 1, "started": "1"})
    with pytest.raises(InputError, match=f"got process {os.getpid()} on"):
        Ledger.open(paths_of(url))
    hang(first)
    second = Ledger.open(paths_of(url))
    assert "had been silent" in second.notes[0]
    second.close()


def test_what_a_replaced_writer_still_writes_counts_for_nobody(store, monkeypatch):
    _, url = store
    sleeper = Ledger.open(paths_of(url))
    sleeper.append("note", text="counts")
    hang(sleeper)
    monkeypatch.setattr("sweeper.store.lease.myself", lambda: {"host": "another", "pid": 1, "started": "1"})
    taker = Ledger.open(paths_of(url))
    sleeper.append("note", text="written in its sleep")
    taker.append("note", text="counts too")
    sleeper.append("note", text="again")
    assert texts(paths_of(url)) == ["counts", "counts too"]
    assert not sleeper._log._lease._is_mine()
    with pytest.raises(RunFailedError, match="process 1 on another has taken over"):
        sleeper.append("note", text="refused")
    taker.close()
    with Ledger.open(paths_of(url)) as ledger:
        assert [event.payload.get("text") for event in ledger.events()][1:] == ["counts", "counts too"]


def test_two_that_come_at_the_same_moment_never_both_write(store, monkeypatch):
    _, url = store
    monkeypatch.setattr("sweeper.store.lease.Lease.take", lambda self: None)
    for _ in range(3):
        barrier, opened = threading.Barrier(4), []

        def come(barrier=barrier, opened=opened):
            barrier.wait()
            try:
                opened.append(Ledger.open(paths_of(url)))
            except (InputError, RunFailedError):
                return

        threads = [threading.Thread(target=come) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, ledger in enumerate(opened):
            ledger.append("note", text=str(number))
    found = texts(paths_of(url))  # whoever won, or nobody: one history, no error
    assert len(found) <= 3 * 4


def test_many_small_objects_are_merged_and_nothing_changes(store, monkeypatch):
    _, url = store
    monkeypatch.setattr(segments, "MERGE_ABOVE", 3)
    for session in range(3):
        with Ledger.open(paths_of(url)) as ledger:
            for number in range(4):
                ledger.append("note", text=f"{session}{number}")
    assert texts(paths_of(url)) == [f"{session}{number}" for session in range(3) for number in range(4)]
    assert len(paths_of(url).storage.keys("ledger")) < 3 * 4


@needs_stub
def test_a_missing_or_damaged_object_is_noticed(store):
    objects, url = store
    with Ledger.open(paths_of(url)) as ledger:
        for number in range(4):
            ledger.append("note", text=str(number))
    keys = sorted(key for key in objects.objects if "/ledger/" in key and url[5:40].split("?")[0] in key)
    kept = objects.objects.pop(keys[2])
    with pytest.raises(InputError, match="missing before line 3"):
        Ledger.open(paths_of(url))
    objects.objects[keys[2]] = kept.replace(b'"1"', b'"9"')
    with pytest.raises(InputError, match="checksum does not fit"):
        Ledger.open(paths_of(url))
    objects.objects[keys[2]] = kept
    objects.objects[keys[-1]] = objects.objects[keys[-1]][:-5]  # a store that shows half an object
    with Ledger.open(paths_of(url)) as ledger:
        ledger.append("note", text="new 3")
    assert texts(paths_of(url)) == ["0", "1", "2", "new 3"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@bucket/x", "must hold no key or password"),
        ("ftp://bucket/x", "s3:// or gs://"),
        ("s3:///x", "must name a bucket"),
        ("s3://bucket/x?secret_key=hidden", "options must be"),
    ],
)
def test_a_wrong_url_is_one_line_without_its_secrets(url, message):
    with pytest.raises(InputError, match=message) as caught:
        ResultPaths.of(url, "study").storage  # noqa: B018
    assert "secret@" not in str(caught.value)
    assert "hidden" not in str(caught.value)
