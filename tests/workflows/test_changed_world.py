"""Promise 4: a resume with another plan, data, weights, version or seed names the difference; accepting is recorded."""

from __future__ import annotations

import json
import shutil

import pytest
import simulated
import tiny

import sweeper
from sweeper.core.errors import ChangedWorldError
from sweeper.data.prepare import load_prepared
from sweeper.store.ledger import Ledger
from sweeper.store.manifest import read_manifest
from sweeper.store.paths import ResultPaths
from sweeper.workflows import manifest as manifest_of
from sweeper.workflows.study import provisional, settle

ROWS = [f"w{i % 62} w{i * 7 % 62},{'ab'[i % 2]}" for i in range(80)]


def write_study(folder, checkpoints):
    """A study of texts in a file, with a checkpoint of its own."""
    shutil.copytree(checkpoints["bert"], folder / "bert")
    (folder / "space.yaml").write_text(tiny.SPACE)
    (folder / "data.csv").write_text("text,label\n" + "\n".join(ROWS))
    text = """
schema: 1
name: study
task: {type: text-classification, data: {train: data.csv}, metric: {name: accuracy}}
models: [{name: bert, checkpoint: bert}]
search: {num_trials: 2, max_epochs: 2, space: space.yaml, max_concurrent_trials: 1}
confirm: {num_seeds: 2}
"""
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def original(checkpoints, tmp_path_factory):
    """A finished study."""
    folder = tmp_path_factory.mktemp("changed")
    path = write_study(folder, checkpoints)
    with provisional(sweeper.load_study(path)) as proposed:
        simulated.session(settle(proposed))
    return folder


@pytest.fixture
def home(original, tmp_path):
    """A copy of it; the study names its files relative to itself."""
    shutil.copytree(original, tmp_path / "copy")
    return tmp_path / "copy"


def change_data(home, monkeypatch):
    (home / "data.csv").write_text("text,label\n" + "\n".join([*ROWS, "w1 w2 w3,a"]))
    return []


def change_weights(home, monkeypatch):
    from safetensors.torch import load_file, save_file

    file = home / "bert" / "model.safetensors"
    weights = load_file(file)
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1
    save_file(weights, file, metadata={"format": "pt"})
    return []


def change_version(home, monkeypatch):
    now = manifest_of.versions()
    monkeypatch.setattr(manifest_of, "versions", lambda: now | {"torch": "9.9"})
    return []


def change_space(home, monkeypatch):
    (home / "space.yaml").write_text(tiny.SPACE.replace("high: 1e-1", "high: 1e-2"))
    return []


CHANGES = {
    "plan": (lambda home, monkeypatch: ["search.num_trials=3"], "search.num_trials: 2, now 3"),
    "seed": (lambda home, monkeypatch: ["seed=5"], "seed: 0, now 5"),
    "data": (change_data, "data_fingerprint: "),
    "weights": (change_weights, "models.bert.weights: "),
    "version": (change_version, "versions.torch: "),
    "space": (change_space, "models.bert.space.parameters.learning_rate.high: 0.1, now 0.01"),
}


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_named_and_refused_and_recorded_when_accepted(home, monkeypatch, kind):
    change, named = CHANGES[kind]
    overrides = change(home, monkeypatch)
    results = ResultPaths(home / "results" / "study")
    before = everything(results.root)
    spec = sweeper.load_study(home / "study.yaml", overrides)
    with pytest.raises(ChangedWorldError) as caught:
        sweeper.run(spec)
    assert named in str(caught.value)
    assert "--accept-change" in str(caught.value)
    assert everything(results.root) == before, "a refusal writes nothing"
    sweeper.run(spec, accept_change=True)
    accepted = read_manifest(results).accepted_changes
    assert any(text.startswith(named) for text in accepted)
    assert [e.payload["differences"] for e in Ledger.read(results) if e.kind == "change_accepted"] == [accepted]
    assert named in (results.report / "report.md").read_text().replace("\\", "")
    sweeper.run(spec)  # from here on it is the study
    assert read_manifest(results).accepted_changes == accepted
    if kind == "data":
        assert load_prepared(results.data).fingerprint == read_manifest(results).content["data_fingerprint"]


def test_a_change_back_and_forth_is_refused_each_time(home, monkeypatch):
    for trials in ("3", "2", "3"):
        spec = sweeper.load_study(home / "study.yaml", [f"search.num_trials={trials}"])
        with pytest.raises(ChangedWorldError):
            sweeper.run(spec)
        sweeper.run(spec, accept_change=True)
    accepted = read_manifest(ResultPaths(home / "results" / "study")).accepted_changes
    assert accepted == ["search.num_trials: 2, now 3", "search.num_trials: 3, now 2", "search.num_trials: 2, now 3"]


def test_the_command_exits_with_2_and_one_line_a_difference(home, capsys):
    from sweeper.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["run", str(home / "study.yaml"), "search.max_epochs=3", "search.num_trials=3"])
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert json.dumps(lines).count("a resumed study must be the one that began") == 2
