"""`training.precision: auto` is decided by measurement, once, and for everybody."""

from __future__ import annotations

import json

import torch

from sweeper.train.precision import bf16_speedup, settled_precision


def fails(device):
    raise AssertionError("measured although it was decided")


def test_the_faster_precision_is_chosen_and_kept(tmp_path):
    for name, speedup, chosen in (("slow", 0.4, "fp32"), ("no gain", 1.1, "fp32"), ("fast", 2.5, "bf16")):
        file = tmp_path / name / "precision.json"
        assert settled_precision("auto", "cpu", file, lambda device, value=speedup: value) == chosen
        assert settled_precision("auto", "cpu", file, fails) == chosen
        assert json.loads(file.read_text()) == {"chosen": chosen, "bf16_speedup": speedup, "device": "cpu"}
        assert list(file.parent.iterdir()) == [file]


def test_of_two_that_measure_at_once_the_first_decides_for_both(tmp_path):
    file = tmp_path / "precision.json"

    def overtaken(device):
        settled_precision("auto", device, file, lambda _: 3.0)
        return 0.5

    assert settled_precision("auto", "cpu", file, overtaken) == "bf16"


def test_what_is_asked_is_not_measured(tmp_path):
    assert settled_precision("bf16", "cpu", tmp_path / "none", fails) == "bf16"
    assert not list(tmp_path.iterdir())


def test_measuring_takes_a_moment_and_leaves_the_random_state_alone():
    state = torch.random.get_rng_state()
    assert bf16_speedup("cpu") > 0
    assert torch.equal(torch.random.get_rng_state(), state)
