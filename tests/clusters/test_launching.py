from __future__ import annotations

import errno
import io
import json
import os
import re
import tarfile
import zipfile

import pytest
import stubs3

from sweeper.cli import main
from sweeper.clusters import package as package_module
from sweeper.clusters.base import Launch, copy_results, unpack_results
from sweeper.clusters.launches import is_launch, new_name
from sweeper.clusters.package import build_package, unpack
from sweeper.core.errors import InputError, RunFailedError
from sweeper.spec.load import load_study
from sweeper.testing.cluster import stand_in

STUDY = """
schema: 1
name: Intents_2
task:
  type: text-classification
  data: {train: data/train.csv, test: ../elsewhere/test.csv}
  columns: {input: text, target: intent}
models:
  - {name: bert, checkpoint: checkpoints/bert}
  - {name: hub, checkpoint: google-bert/bert-base-uncased}
"""


@pytest.fixture
def study(tmp_path):
    home = tmp_path / "home"
    for name, text in {
        "home/study.yaml": STUDY,
        "home/data/train.csv": "text,intent\na,b\n",
        "elsewhere/test.csv": "text,intent\na,b\n",
        "home/checkpoints/bert/config.json": "{}",
        "home/my_task.py": "X = 1\n",
        "home/notes/big.bin": "x" * 1000,
        "home/.git/HEAD": "ref",
        "home/.env": "WANDB_API_KEY=planted-secret",
        "home/results/intents/ledger.jsonl": "{}",
        "home/.sweeperignore": "notes/\ncheckpoints/\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return home / "study.yaml"


def pack(study, tmp_path, **options):
    spec = load_study(study, options.pop("overrides", ()))
    return build_package(spec, study.parent, tmp_path / "p.zip", storage_path="/storage", **options)


def test_a_package_holds_what_the_study_needs_and_not_what_is_left_out(study, tmp_path):
    made = pack(study, tmp_path, overrides=["search.num_trials=3"])
    assert "checkpoints/bert/config.json" in made.files, "used by the study, so not left out"
    outside = next(name for name in made.files if name.startswith("outside/"))
    assert set(made.files) == {
        "study.yaml",
        "data/train.csv",
        "checkpoints/bert/config.json",
        "my_task.py",
        ".sweeperignore",
        outside,
    }
    unpack(made.path, tmp_path / "there")
    assert "planted-secret" not in "".join(p.read_text() for p in (tmp_path / "there").rglob("*") if p.is_file())
    there = load_study(tmp_path / "there" / "study.yaml")
    assert there.search.num_trials == 3
    assert there.storage_path == "/storage"
    assert there.task.data.train == str(tmp_path / "there" / "data" / "train.csv")
    assert there.task.data.test == str(tmp_path / "there" / outside)
    assert [model.checkpoint for model in there.models][1] == "google-bert/bert-base-uncased"


def test_the_same_study_gives_the_same_package(study, tmp_path):
    first = pack(study, tmp_path).path.read_bytes()
    assert pack(study, tmp_path).path.read_bytes() == first


def test_shared_files_are_named_and_not_packed(study, tmp_path):
    made = pack(study, tmp_path, shared_paths=[str(tmp_path / "elsewhere")])
    assert not any(name.startswith("outside/") for name in made.files)
    with zipfile.ZipFile(made.path) as archive:
        assert str(tmp_path / "elsewhere" / "test.csv") in archive.read("study.yaml").decode()


def test_a_package_that_is_too_large_names_its_largest_files(study, tmp_path, monkeypatch):
    monkeypatch.setattr(package_module, "MAX_BYTES", 20)
    with pytest.raises(InputError, match=r"largest files are .*test.csv.*name them in \.sweeperignore"):
        pack(study, tmp_path)


def test_names_that_lead_out_of_a_package_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../escaped", "x")
    with pytest.raises(InputError, match="must stay inside"):
        unpack(tmp_path / "bad.zip", tmp_path / "there")
    assert not (tmp_path / "escaped").exists()


def test_names_of_launches_fit_kubernetes():
    name = new_name("Intents_2 " + "x" * 90)
    assert name.startswith("intents-2-x")
    assert len(name) <= 47
    assert name == name.lower()
    assert new_name("2026 digits").startswith("study-2026-digits-")
    assert re.fullmatch(r"study-[0-9]{4}-[0-9]{4}-[0-9a-f]{4}", new_name("___"))


def run(capsys, *words):
    """Run a command and return its code and output."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return ended.value.code, capsys.readouterr()


def no_space(reading, writing):
    writing.write(reading.read(1))
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_launch_by_name_from_submission_to_fetching(study, tmp_path, capsys, monkeypatch):
    profile = tmp_path / "mine.yaml"
    profile.write_text(f"type: local\npython: {stand_in(tmp_path / 'python')}\nstorage_path: {tmp_path / 'storage'}\n")
    command = ["launch", str(study), "--cluster", str(profile)]
    code, said = run(capsys, *command, "--dry-run")
    assert code == 0
    assert "sweeper.clusters.supervise" in said.out
    assert "#   my_task.py (6)" in said.out
    assert not list((tmp_path / "state").rglob("*")), "a dry run leaves nothing"

    code, said = run(capsys, *command, "--json")
    name = json.loads(said.out)["name"]
    assert code == 0
    assert is_launch(name)
    code, said = run(capsys, "logs", name, "--follow")
    assert "the driver is done" in said.out
    code, said = run(capsys, "status", name, "--json")
    assert json.loads(said.out)["state"] == "SUCCEEDED"
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as full_disk:
        full_disk.setattr("sweeper.clusters.base.shutil.copyfileobj", no_space)
        code, said = run(capsys, "fetch", name)
    assert code == 1
    assert "No space left on device" in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "results" / "Intents_2").exists(), "half a study is not left behind"
    code, said = run(capsys, "fetch", name)
    assert code == 0
    assert (tmp_path / "results" / "Intents_2" / "report" / "index.html").is_file()
    assert run(capsys, "fetch", name)[0] == 2, "a folder with something in it is not written into"
    assert run(capsys, "cancel", name)[0] == 0


def test_a_name_that_was_never_launched_is_an_error(capsys):
    code, said = run(capsys, "logs", "nothing-1")
    assert code == 2
    assert "must be the name of a launch made from this machine" in said.err


def test_a_study_for_a_cluster_is_not_run_here(study, capsys):
    code, said = run(capsys, "run", str(study), "cluster=slurm")
    assert code == 2
    assert "sweeper launch STUDY" in said.err


def test_a_launch_without_shared_storage_is_refused(study, tmp_path, capsys):
    profile = tmp_path / "far.yaml"
    profile.write_text("type: existing\naddress: http://127.0.0.1:1\n")
    code, said = run(capsys, "launch", str(study), "--cluster", str(profile), "--dry-run")
    assert code == 2
    assert "results need a place that all nodes see" in said.err


def test_results_in_an_object_store_are_fetched_without_what_only_runs_need(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with stubs3.serving() as (store, at):
        launch = Launch(
            name="made-1",
            study="made",
            package=tmp_path / "p.zip",
            storage_path=f"s3://bucket/results?endpoint_override={at}&scheme=http&region=us-east-1",
        )
        for name in ("report/index.html", "manifest.json", ".scratch/data", ".seals/report.json"):
            store.objects[f"bucket/results/made/{name}"] = name.encode()
        copy_results(launch.results, tmp_path / "home")
    found = sorted(path.relative_to(tmp_path / "home").as_posix() for path in (tmp_path / "home").rglob("*.*"))
    assert found == ["manifest.json", "report/index.html"]


def entry(name, kind=tarfile.REGTYPE, link=""):
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode, made.size = kind, link, 0o7777, 2 if kind == tarfile.REGTYPE else 0
    return made


def packed(*entries):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for each in entries:
            archive.addfile(each, io.BytesIO(b"ok") if each.size else None)
    return stream.getvalue()


def test_what_a_cluster_sends_stays_in_its_folder_and_brings_no_rights(tmp_path):
    whole = packed(entry("report", tarfile.DIRTYPE), entry("report/index.html"), entry("a/b"))
    unpack_results(io.BytesIO(whole), tmp_path / "r")
    assert (tmp_path / "r" / "a" / "b").read_bytes() == b"ok"
    assert not (tmp_path / "r" / "report" / "index.html").stat().st_mode & 0o7111
    absolute = str(tmp_path / "out")
    for bad in (
        entry("../out"), entry(absolute), entry("out", tarfile.SYMTYPE, absolute), entry("p", tarfile.FIFOTYPE),
        entry("hard", tarfile.LNKTYPE, "../out"),
    ):  # fmt: skip
        with pytest.raises(RunFailedError, match="came from the cluster"):
            unpack_results(io.BytesIO(packed(bad)), tmp_path / "r")
    for damaged in (b"", b"no archive", whole[:10], whole[:60], whole[: len(whole) // 2]):
        with pytest.raises(RunFailedError, match="cannot be unpacked"):
            unpack_results(io.BytesIO(damaged), tmp_path / "r")
    assert {path.name for path in tmp_path.iterdir()} == {"r"}
