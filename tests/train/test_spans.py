"""Spans: where time goes, without counting any of it twice."""

from __future__ import annotations

import time

from sweeper.train.options import TrainOptions
from sweeper.train.spans import Spans


def test_time_inside_another_span_is_counted_once():
    spans = Spans()
    began = time.perf_counter()
    with spans("training"):
        time.sleep(0.02)
        for _ in range(3):
            with spans("forward"):
                time.sleep(0.01)
        with spans("cache"):
            time.sleep(0.02)
    elapsed = time.perf_counter() - began
    cache, training = spans.drain()
    assert (cache.name, training.name) == ("cache", "training")
    assert set(training.own) == {"forward", "training"}
    assert training.own["forward"] >= 0.03
    assert sum(training.own.values()) + sum(cache.own.values()) <= elapsed
    assert abs(training.seconds - sum(training.own.values()) - cache.seconds) < 1e-6
    assert spans.drain() == []


def test_a_span_that_raises_is_recorded():
    spans = Spans()
    try:
        with spans("evaluation"):
            raise ValueError
    except ValueError:
        pass
    assert [span.name for span in spans.drain()] == ["evaluation"]


def test_nothing_is_recorded_unless_asked():
    with TrainOptions().measure("forward"):
        pass
