"""The tail of a study on a cluster: lanes for which no work is left are let go, and with them their nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from sweeper.core.trial import TrialKind
from sweeper.engine.lanes import Lanes
from sweeper.engine.messages import Assignment, StepReport
from sweeper.engine.tune import Conductor
from sweeper.plan.plan import StudyPlan
from sweeper.store.state import StudyState


def work_left(plan: StudyPlan, state: StudyState) -> int:
    """Return how many trials and confirmation runs have not ended yet, those not yet asked included.

    Early stopping leaves the number of trials as it is, so this is exact while no model is given up. Tests do not
    count: they take moments, and the lanes that are left serve them.
    """
    if state.frozen is not None:
        return sum(not state.trials[trial_id].state.is_final for trial_id in state.frozen)
    ended = [r for r in state.trials.values() if r.spec.kind is TrialKind.SEARCH and r.state.is_final]
    confirmations = 2 * len(plan.models) * len(plan.confirmation_seeds)
    return max(0, len(plan.models) * plan.budget.num_trials - len(ended)) + confirmations


class Tail:
    """A `Conductor` that passes everything on to another, and tells the lanes how many can still be used."""

    def __init__(self, conductor: Conductor, lanes: Lanes, left: Callable[[], int]) -> None:
        self._conductor = conductor
        self._lanes = lanes
        self._left = left

    def next(self) -> Assignment | Literal["wait", "done"]:
        """See `Conductor`."""
        return self._conductor.next()

    def take(self, report: StepReport) -> bool:
        """See `Conductor`."""
        ended = self._conductor.take(report)
        if (left := self._left()) < self._lanes.count or ended:
            self._lanes.keep(left)
        return ended

    def lost(self, assignment: Assignment) -> None:
        """See `Conductor`."""
        self._conductor.lost(assignment)

    @property
    def stopping(self) -> bool:
        """See `Conductor`."""
        return self._conductor.stopping
