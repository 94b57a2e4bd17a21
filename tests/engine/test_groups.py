"""Models that ask for nodes of their own are served by lanes there, on a real Ray."""

from __future__ import annotations

from dataclasses import replace

import lanework
import pytest
import ray

from sweeper.engine.cluster import lane_counts
from sweeper.engine.lanes import LaneGroup, Lanes, LaneShape
from sweeper.engine.tune import run_assignments
from sweeper.testing.leaks import no_leaks

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


class TwoModels(lanework.Conductor):
    """Trials of two models in turn, no more of one at once than it has lanes; notes which process ran which."""

    def __init__(self, lanes, count):
        super().__init__(*[{}] * count)
        self.lanes, self.processes, self.models = lanes, {"a": set(), "b": set()}, {}
        self.waiting = [replace(trial, model="ab"[trial.number % 2]) for trial in self.waiting]

    def next(self):
        for trial in list(self.waiting):
            if self.lanes.has_room(trial.model, [self.models[name] for name in self.running]):
                self.waiting.remove(trial)
                self.waiting.insert(0, trial)
                self.models[trial.trial_id] = trial.model
                return super().next()
        return "wait" if self.running else "done"

    def take(self, report):
        if report.started:
            self.processes[self.models[report.trial_id]].add(report.started.effective["pid"])
        return super().take(report)


def test_each_model_is_served_by_the_lanes_of_its_own_nodes(tmp_path):
    here = ray.nodes()[0]["Labels"]["ray.io/node-id"]
    needs = {"num_workers": 1, "resources_per_worker": {"CPU": 1}}
    shapes = {"": LaneShape(**needs), "here": LaneShape(**needs, node_labels={"ray.io/node-id": here})}
    counts = lane_counts(shapes, "auto")
    assert counts == {"": 1, "here": 1}
    groups = [LaneGroup(shape=s, count=counts[n], make_worker=lanework.Worker, name=n) for n, s in shapes.items()]
    with no_leaks(), Lanes(groups, tmp_path / "lanes", group_of={"b": "here"}) as lanes:
        work = TwoModels(lanes, 12)
        run_assignments(lanes, work, scratch=tmp_path, max_retries=2, epoch_timeout_seconds=60)
        assert len(work.ended) == 12
        assert [len(found) for found in work.processes.values()] == [1, 1]
        assert work.processes["a"] != work.processes["b"]
        lanes.keep({"": 0, "here": 0})
        assert lanes.counts == {"": 1, "here": 1}, "the last lane of each stays"
