"""The tail of a study on a cluster: lanes for which no work is left are let go, and with them their nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

from sweeper.core.trial import TrialKind
from sweeper.engine.lanes import Lanes
from sweeper.engine.messages import Assignment, StepReport
from sweeper.engine.tune import Conductor
from sweeper.plan.plan import StudyPlan
from sweeper.store.state import StudyState


def work_left(plan: StudyPlan, state: StudyState) -> dict[str, int]:
    """Return how many trials and confirmation runs of each model have not ended yet, those not yet asked included.

    Early stopping leaves the number of trials as it is, so this is exact while no model is given up. Tests do not
    count: they take moments, and the lanes that are left serve them.
    """
    names = [model.name for model in plan.models]
    if state.frozen is not None:
        records = [state.trials[trial_id] for trial_id in state.frozen]
        left = Counter(record.spec.model for record in records if not record.state.is_final)
        return {name: left[name] for name in names}
    search = [r for r in state.trials.values() if r.spec.kind is TrialKind.SEARCH and r.state.is_final]
    ended = Counter(record.spec.model for record in search)
    confirmations = 2 * len(plan.confirmation_seeds)
    return {name: max(0, plan.budget.num_trials - ended[name]) + confirmations for name in names}


class Tail:
    """A `Conductor` that passes everything on to another, and tells the lanes how many can still be used."""

    def __init__(self, conductor: Conductor, lanes: Lanes, left: Callable[[], Mapping[str, int]]) -> None:
        self._conductor = conductor
        self._lanes = lanes
        self._left = left

    def next(self) -> Assignment | Literal["wait", "done"]:
        """See `Conductor`."""
        return self._conductor.next()

    def take(self, report: StepReport) -> bool:
        """See `Conductor`."""
        ended = self._conductor.take(report)
        left = dict.fromkeys(self._lanes.counts, 0)
        for model, amount in self._left().items():
            left[self._lanes.group(model)] += amount
        if ended or any(left[group] < count for group, count in self._lanes.counts.items()):
            self._lanes.keep(left)
        return ended

    def lost(self, assignment: Assignment) -> None:
        """See `Conductor`."""
        self._conductor.lost(assignment)

    @property
    def stopping(self) -> bool:
        """See `Conductor`."""
        return self._conductor.stopping
