from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.core.errors import InputError
from sweeper.models.checkpoints import inspect
from sweeper.spec.load import dump_study, load_study
from sweeper.spec.space import load_space
from sweeper.spec.yaml import parse_yaml

GOOD = """
schema: 1
name: demo
task: {type: text-classification, data: {train: train.csv}}
models:
  - {name: bert, checkpoint: org/bert}
"""


def write(folder: Path, text: str, name: str = "study.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems(path, overrides=()):
    with pytest.raises(InputError) as caught:
        load_study(path, overrides)
    return [str(problem) for problem in caught.value.problems]


def test_five_mistakes_give_five_lines_with_their_places(tmp_path):
    path = write(
        tmp_path,
        """schema: 1
name: a/b
serach: {num_trials: 3}
task:
  type: text-classification
  data: {train: x.csv, validation: 1.5}
  balance: weights
models:
  - {name: m, checkpoint: a}
search:
  num_trials: 0
""",
    )
    lines = problems(path)
    assert len(lines) == 5
    for place in (
        ":2:1 name",
        ":3:1 serach",
        ":6:24 task.data.validation",
        ":7:3 task.balance",
        ":11:3 search.num_trials",
    ):
        assert any(f"study.yaml{place}" in line for line in lines), place
    assert any("did you mean search?" in line for line in lines)


def test_the_command_prints_them_exits_with_2_and_writes_nothing(tmp_path):
    path = write(tmp_path, GOOD.replace("name: demo", "name: ../x") + "sead: 3\n")
    before = sorted(tmp_path.rglob("*"))
    result = subprocess.run(
        [sys.executable, "-m", "sweeper.cli", "run", str(path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_paths_come_back_absolute_and_hub_ids_stay(tmp_path):
    spec = load_study(write(tmp_path, GOOD))
    assert spec.task.data.train == str(tmp_path / "train.csv")
    assert spec.storage_path == str(tmp_path / "results")
    assert spec.models[0].checkpoint == "org/bert"


@pytest.mark.parametrize("name", ["org/" + 300 * "9", "~nobody-of-this-name/bert"])
def test_a_name_that_no_file_can_have_is_a_name_of_nothing(tmp_path, name):
    text = GOOD.replace("org/bert", name).replace("train.csv", name)
    spec = load_study(write(tmp_path, text))
    assert spec.models[0].checkpoint.endswith(name)
    with pytest.raises(InputError, match="checkpoint"):
        inspect(spec.models[0])


@pytest.mark.parametrize("models", ["5", "true", "{a: b}"])
def test_models_that_are_no_list_are_a_clear_error(tmp_path, models):
    path = write(tmp_path, GOOD.split("models:")[0] + f"models: {models}\n")
    assert "models" in problems(path)[0]


def test_overrides_reach_lists_by_name_and_spaces(tmp_path):
    write(
        tmp_path,
        "parameters: {learning_rate: {type: float, low: 1e-6, high: 1e-3, log: true}}\ndefault: {learning_rate: 1e-5}\n",
        "space.yaml",
    )
    path = write(tmp_path, GOOD + "search: {space: space.yaml}\n")
    spec = load_study(path, ["search.num_trials=8", "models.bert.space.learning_rate.high=1e-4"])
    assert spec.search.num_trials == 8
    space = load_space(spec.search.space, spec.models[0].space_overrides)
    assert space["learning_rate"].high == 1e-4


def test_a_wrong_override_names_itself(tmp_path):
    assert problems(write(tmp_path, GOOD), ["search.num_trials=-4"])[0].startswith("override search.num_trials=-4:")
    assert "must be one of bert" in problems(write(tmp_path, GOOD), ["models.brt.checkpoint=x"])[0]


def test_a_dumped_study_loads_to_the_same(tmp_path):
    spec = load_study(write(tmp_path, GOOD))
    assert load_study(write(tmp_path, dump_study(spec), "again.yaml")) == spec


def test_scientific_notation_is_a_number_and_duplicate_keys_are_errors(tmp_path):
    assert parse_yaml("a: 1e-3", "x").data == {"a": 1e-3}
    assert "found duplicate key" in problems(write(tmp_path, "name: a\nname: b\n"))[0]


def test_a_file_that_unfolds_to_billions_is_refused(tmp_path):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "aliases" in problems(write(tmp_path, "\n".join(lines)))[0]


@pytest.mark.parametrize("deep", ["[a, " * 600, "{a: " * 600, "- " * 600, "a: [\n" * 600])
def test_a_file_that_nests_deeply_is_refused_at_once(tmp_path, deep):
    began = time.process_time()
    assert "must nest at most 50 levels" in problems(write(tmp_path, deep))[0]
    assert time.process_time() - began < 2  # the parser alone takes minutes for the first


def test_brackets_that_are_closed_do_not_add_up():
    assert len(parse_yaml("- [{a: [1, 2]}]\n" * 500, "x").data) == 500


def test_all_wrong_ranges_are_reported_at_once_with_their_lines(tmp_path):
    path = write(
        tmp_path,
        """parameters:
  learning_rate: {type: float, low: 1e-3, high: 1e-4}
  weight_decay: {type: float, low: 0, high: 1, log: true}
  dropout: {type: float, low: 0, high: 0.3, when: {unfrozen: yes}}
  unfreezing: {type: categorical, choices: [full, gradual], when: {epochs_per_stage: 1}}
  epochs_per_stage: {type: int, low: 1, high: 2, when: {unfreezing: gradual}}
  batch_size: {type: categorical, choices: [8, 16]}
  patience: {type: int, low: 1, high: 9, step: 0}
  focal_gamma: {type: float, low: 0, high: 2, when: {learning_rate: 1}}
default: {batch_size: 12}
""",
        "space.yaml",
    )
    with pytest.raises(InputError) as caught:
        load_space(path)
    lines = [str(problem) for problem in caught.value.problems]
    for line, words in (
        (2, "low must be below high, got 0.001 and 0.0001"),
        (3, "a log range must begin above 0, got 0"),
        (4, "a condition must name a parameter of the space, got unfrozen"),
        (5, "conditions must not form a circle, got unfreezing, epochs_per_stage"),
        (8, "must be a whole number of at least 1, got 0"),
        (10, "must lie in its range, got 12"),
    ):
        assert any(f"space.yaml:{line}:" in text and words in text for text in lines), words
    assert len(lines) == 6, "a condition on a parameter that is wrong itself is no second mistake"


def test_a_default_outside_its_range_is_named(tmp_path):
    path = write(tmp_path, "parameters: {batch_size: {choices: [8, 16]}}\ndefault: {batch_size: 12}\n", "s.yaml")
    with pytest.raises(InputError, match=r"s\.yaml:2:\d+ default\.batch_size: must lie in its range, got 12"):
        load_space(path)


def test_the_spelling_of_wandb_gives_the_same_space(tmp_path):
    ours = load_space(
        write(
            tmp_path,
            "parameters:\n  learning_rate: {type: float, low: 1e-5, high: 1e-3, log: true}\n"
            "  batch_size: {type: categorical, choices: [8, 16]}\n  dropout: {type: float, low: 0.0, high: 0.3}\n"
            "  num_unfrozen_blocks: {type: int, low: 2, high: 8, step: 2}\n  optimizer: sgd\n"
            "default: {learning_rate: 1e-4, batch_size: 8, dropout: 0.1, num_unfrozen_blocks: 4}\n",
            "a.yaml",
        )
    )
    theirs = load_space(
        write(
            tmp_path,
            "parameters:\n  learning_rate: {distribution: log_uniform_values, min: 1e-5, max: 1e-3}\n"
            "  batch_size: {values: [8, 16]}\n  dropout: {min: 0.0, max: 0.3}\n"
            "  num_unfrozen_blocks: {distribution: q_uniform, min: 2, max: 8, q: 2}\n  optimizer: {value: sgd}\n"
            "default: {learning_rate: 1e-4, batch_size: 8, dropout: 0.1, num_unfrozen_blocks: 4}\n",
            "b.yaml",
        )
    )
    assert ours == theirs


def test_a_distribution_of_wandb_that_is_not_searched_is_named(tmp_path):
    text = "parameters: {learning_rate: {distribution: normal, mu: 0, sigma: 1}, dropout: {min: 0.0, max: 0.3, q: 0.1}}"
    with pytest.raises(InputError) as caught:
        load_space(write(tmp_path, text, "s.yaml"))
    assert "distribution normal" in str(caught.value)
    assert "only whole numbers have steps" in str(caught.value)


@pytest.mark.parametrize("path", sorted(Path("search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_loads_and_names_its_source(path):
    space = load_space(path)
    assert space.source
    assert space.active(space.default) == space.default


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_study_or_a_clear_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("fuzz") / "study.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(InputError):
        load_study(path)
    with pytest.raises(InputError):
        load_space(path)
