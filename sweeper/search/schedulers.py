"""Early stopping: whether a trial goes on, from the values of its siblings at the same epoch.

State is what `EarlyStopping.decide` has been told; replaying the same measurements in the same order rebuilds it.
"""

from __future__ import annotations

import math
from typing import Protocol

from sweeper.core.objective import Objective
from sweeper.core.trial import Decision
from sweeper.spec.study import SchedulerSpec


class EarlyStopping(Protocol):
    """Decides about the trials of one model."""

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs at which a trial may be stopped, ascending."""
        ...

    def decide(self, trial_id: str, epoch: int, value: float, *, protected: bool = False) -> Decision:
        """Take a validation value and say whether the trial goes on.

        Parameters
        ----------
        trial_id:
            Whose value it is. Telling the same trial and epoch again changes nothing.
        epoch:
            Epochs completed.
        value:
            The objective's metric.
        protected:
            A trial that counts for others but is never stopped: the default configuration.
        """
        ...


class NoStopping:
    """Every trial runs to its full budget."""

    rungs: tuple[int, ...] = ()

    def decide(self, trial_id: str, epoch: int, value: float, *, protected: bool = False) -> Decision:  # noqa: ARG002
        """Continue, always."""
        return Decision.CONTINUE


class AshaStopping:
    """Asynchronous successive halving, the stopping variant (Li et al. 2020, arXiv 1810.05934; as in Ray Tune).

    At a rung a trial goes on when its value is at least the (1 - 1/η) quantile of all values seen at that rung so
    far, its own included, by linear interpolation; so the first trials of a rung go on.

    Parameters
    ----------
    objective:
        The direction.
    max_epochs:
        Full budget of a trial.
    reduction_factor:
        η, at least 2: about one trial in η passes each rung.
    grace_fraction:
        Share of ``max_epochs`` before the first rung.
    """

    def __init__(self, objective: Objective, max_epochs: int, reduction_factor: int, grace_fraction: float) -> None:
        self._objective = objective
        self._keep = 1 / reduction_factor
        rungs = []
        rung = max(1, math.ceil(grace_fraction * max_epochs))
        while rung < max_epochs:
            rungs.append(rung)
            rung *= reduction_factor
        self._losses: dict[int, dict[str, float]] = {rung: {} for rung in rungs}

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs of the rungs, ascending."""
        return tuple(self._losses)

    def decide(self, trial_id: str, epoch: int, value: float, *, protected: bool = False) -> Decision:
        """Stop a trial that is outside the best 1/η of its rung; see `EarlyStopping`."""
        losses = self._losses.get(epoch)
        if losses is None:
            return Decision.CONTINUE
        loss = losses.setdefault(trial_id, self._objective.loss(value))
        known = list(losses.values())  # in order of arrival: a replayed decision sees the same siblings
        seen = sorted(known[: list(losses).index(trial_id) + 1])
        at = self._keep * (len(seen) - 1)
        below, above = seen[math.floor(at)], seen[math.ceil(at)]
        cutoff = below + (above - below) * (at - math.floor(at))
        return Decision.CONTINUE if protected or loss <= cutoff else Decision.STOP


def make_stopping(spec: SchedulerSpec, objective: Objective, max_epochs: int) -> EarlyStopping:
    """Build the early stopping that a study asks for, one for each model."""
    if spec.type == "none":
        return NoStopping()
    return AshaStopping(objective, max_epochs, spec.reduction_factor, spec.grace_fraction)
