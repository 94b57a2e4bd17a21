"""Hub ids through the real clients of the hub, against a hub on loopback."""

from __future__ import annotations

import os
import subprocess
import sys

import stubhub
import tiny

STUDY = """
schema: 1
name: hub
task:
  type: text-classification
  data: {train: acme/intents, validation: acme/intents, test: acme/intents}
  columns: {input: text, target: intent}
  metric: {name: accuracy}
models:
  - {name: bert, checkpoint: acme/bert}
search: {num_trials: 2, max_epochs: 2}
"""


def plan(tmp_path, address, *arguments, offline="0"):
    environment = os.environ | {
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path / "hub-home"),
        "HF_HUB_OFFLINE": offline,
        "HF_DATASETS_OFFLINE": offline,
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-m", "sweeper.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)


def write_intents(folder):
    folder.mkdir()
    for split, count in (("train", 24), ("validation", 12), ("test", 12)):
        rows = [f"{split} word{i} please,{'abc'[i % 3]}" for i in range(count)]
        (folder / f"{split}.csv").write_text("\n".join(["text,intent", *rows]) + "\n")
    return folder


def test_a_model_and_a_data_set_come_from_the_hub_and_then_from_its_cache(tmp_path):
    checkpoint = tiny.save_checkpoints(tmp_path / "made")["bert"]
    (tmp_path / "study.yaml").write_text(STUDY)
    with stubhub.serve(models__acme__bert=checkpoint, datasets__acme__intents=write_intents(tmp_path / "data")) as (
        address,
        log,
    ):
        done = plan(tmp_path, address, "check", "study.yaml", "--json")
        assert done.returncode == 0, done.stderr + "\n".join(log)
        assert '"train": 24' in done.stdout
        done = plan(tmp_path, address, "plan", "study.yaml", "--no-probe")
        assert done.returncode == 0, done.stderr + "\n".join(log)
        assert "bert" in done.stdout
        assert any("model.safetensors" in line for line in log)
        assert not any(line.startswith("GET") and line.endswith((".bin", ".pkl", ".py")) for line in log)
    again = plan(tmp_path, address, "plan", "study.yaml", "--no-probe", offline="1")  # the hub is gone
    assert again.returncode == 0, again.stderr


def test_a_name_that_the_hub_does_not_know_is_one_clear_line(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    with stubhub.serve(datasets__acme__intents=write_intents(tmp_path / "data")) as (address, _):
        done = plan(tmp_path, address, "plan", "study.yaml", "--no-probe")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "study.yaml" in line or "checkpoint" in line]
    assert len(lines) == 1
    assert "acme/bert" in lines[0]
    assert not (tmp_path / "results").exists()
