"""The profile of a run: seconds by activity and lane, and a trace."""

from __future__ import annotations

import json

from sweeper.store.paths import ResultPaths
from sweeper.store.profile import append_spans, write_profile
from sweeper.train.spans import Span


def test_the_table_adds_up_and_the_trace_holds_every_span(tmp_path):
    paths = ResultPaths(tmp_path)
    training = Span(name="training", began=10.0, seconds=3.0, own={"training": 0.5, "forward": 1.0, "backward": 1.5})
    append_spans(paths, [training, Span(name="waiting", began=13.0, seconds=1.0, own={"waiting": 1.0})])
    with next(paths.spans.iterdir()).open("a") as file:
        file.write('{"name": "torn')
    table = write_profile(paths)
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
    assert rows["forward"] == ["1.00", "25.0%"]
    assert rows["all"] == ["4.00"]
    events = json.loads((paths.profile / "trace.json").read_text())["traceEvents"]
    assert [event["name"] for event in events if event["ph"] == "X"] == ["training", "waiting"]
    assert (paths.profile / "table.txt").read_text() == table
