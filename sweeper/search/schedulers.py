"""Early stopping: whether a trial goes on, from the values of its siblings at the same epoch.

State is what `EarlyStopping.decide` has been told and `EarlyStopping.promote` has answered; telling the same in the
same order rebuilds it. Only values of settled trials are told, see `settled_after`.
"""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple, Protocol

from sweeper.core.objective import Objective
from sweeper.core.seeds import derive_seed
from sweeper.core.space import Params
from sweeper.core.trial import Decision
from sweeper.spec.study import SchedulerSpec
from sweeper.train.settings import Settings

LEAST_EPOCHS = 2  # after one epoch a fresh head has hardly begun: the order of trials says little about the final one
LAST_FACTOR = 2  # one trial in so many passes each rung once none is left to begin
MEDIAN_OF = 5  # values that a median needs: Optuna's default number of start-up trials


class Promotion(NamedTuple):
    """A paused trial that may go on, and the epoch of the rung at which it waits."""

    trial_id: str
    epoch: int


class EarlyStopping(Protocol):
    """Decides about the trials of one model."""

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs at which a trial may be stopped or paused, ascending."""
        ...

    @property
    def pauses(self) -> bool:
        """Whether trials wait at rungs: their state must be kept there."""
        ...

    def decide(self, trial_id: str, epoch: int, value: float, *, protected: bool = False) -> Decision:
        """Take a validation value and say whether the trial goes on.

        Parameters
        ----------
        trial_id:
            Whose value it is. Telling the same trial and epoch again changes nothing and gives the same answer,
            unless the trial was promoted since.
        epoch:
            Epochs completed.
        value:
            The objective's metric.
        protected:
            A trial that counts for others but is never stopped: the default configuration.
        """
        ...

    def promote(self, *, last: bool = False, idle: bool = False) -> Promotion | None:
        """Choose a paused trial that has earned to go on, or None.

        Parameters
        ----------
        last:
            All trials were begun, and nothing is taken from others by what one of them costs: more may pass.
        idle:
            No trial is under way and none will be begun: each rung lets at least its best one pass.
        """
        ...

    def promoted(self, promotion: Promotion) -> None:
        """Repeat an answer of `promote` that the ledger holds."""
        ...

    def ended(self, trial_id: str, *, failed: bool) -> None:
        """Hear that a trial has ended: it waits no more. One that failed gives its places to others."""
        ...

    def expected_epochs(self, max_epochs: int) -> float:
        """Epochs that a trial trains on average, where all are judged at every rung."""
        ...

    def epochs_left(self, under_way: Sequence[tuple[int, float]], max_epochs: int) -> float:
        """Epochs that will be trained yet if no trial is added any more, nor any promoted with ``last``.

        Rather too many than too few.

        Parameters
        ----------
        under_way:
            Epochs that each trial under way has completed, and the epoch after which rungs judge it; who waits is
            known.
        """
        ...


def settled_after(params: Params, effective: Mapping[str, Any], max_epochs: int) -> float:
    """Return the epoch after which a trial's values can be compared with those of others.

    That is when its warm-up has ended and its last unfreezing event lies behind: before, it does not yet train what it
    was asked to train. A rung at this epoch or before it is passed over: the trial is not judged there, and its value
    does not count for others.

    Parameters
    ----------
    effective:
        As read back from the live model; its ``stages`` are the unfreezing events.
    """
    warmup = params.get("warmup_ratio", Settings.warmup_ratio)
    epochs = float(warmup) * max_epochs if isinstance(warmup, int | float) else 0.0
    return max([epochs, *(float(stage["from_epoch"]) for stage in effective.get("stages", ()))])


class NoStopping:
    """Every trial runs to its full budget; also what stopping without pauses has in common."""

    rungs: tuple[int, ...] = ()
    pauses = False

    def decide(self, trial_id: str, epoch: int, value: float, *, protected: bool = False) -> Decision:  # noqa: ARG002
        """Continue, always."""
        return Decision.CONTINUE

    def promote(self, *, last: bool = False, idle: bool = False) -> Promotion | None:  # noqa: ARG002
        """Nothing is ever paused."""
        return None

    def promoted(self, promotion: Promotion) -> None:
        """Nothing is ever paused."""
        raise AssertionError(f"{promotion} cannot have been paused")

    def ended(self, trial_id: str, *, failed: bool) -> None:
        """Nobody waits, and nobody takes a place."""

    def expected_epochs(self, max_epochs: int) -> float:
        """All of them."""
        return float(max_epochs)

    def epochs_left(self, under_way: Sequence[tuple[int, float]], max_epochs: int) -> float:
        """All that trials under way could train: which of them will be stopped nobody knows."""
        return float(sum(max_epochs - epochs for epochs, _ in under_way))


class MedianStopping(NoStopping):
    """The median rule (Golovin et al. 2017, section 3.2.1), with the best value so far in the place of running means.

    After any epoch from the first rung on, a trial stops when its best value so far is worse than the median of the
    best values so far of all others that had reached this epoch before, stopped ones included; at least five of them.
    """

    def __init__(self, objective: Objective, max_epochs: int, grace_fraction: float) -> None:
        self._objective = objective
        self.rungs = tuple(range(_first_rung(max_epochs, grace_fraction), max_epochs))
        self._best: dict[str, float] = {}
        self._seen: dict[int, list[float]] = {rung: [] for rung in self.rungs}
        self._decided: dict[tuple[str, int], Decision] = {}

    def decide(self, trial_id: str, epoch: int, value: float, *, protected: bool = False) -> Decision:
        """Stop a trial that is worse than the median; see `EarlyStopping`."""
        if (trial_id, epoch) in self._decided:
            return self._decided[trial_id, epoch]
        best = min(self._best.get(trial_id, math.inf), self._objective.loss(value))
        self._best[trial_id] = best
        decision = Decision.CONTINUE
        if epoch in self._seen:
            seen = self._seen[epoch]
            if not protected and len(seen) >= MEDIAN_OF and best > median(seen):
                decision = Decision.STOP
            insort(seen, best)
        self._decided[trial_id, epoch] = decision
        return decision

    def expected_epochs(self, max_epochs: int) -> float:
        """Half of the trials are below the median of the first rung; those that pass it mostly stay above."""
        first = self.rungs[0] if self.rungs else max_epochs
        return first + (max_epochs - first) / 2


class AshaStopping(NoStopping):
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
    skip:
        Rungs to leave out from the lowest on: Hyperband's brackets.
    """

    def __init__(
        self, objective: Objective, max_epochs: int, reduction_factor: int, grace_fraction: float, skip: int = 0
    ) -> None:
        self._objective = objective
        self._factor = reduction_factor
        self.rungs = _geometric_rungs(max_epochs, reduction_factor, grace_fraction)[skip:]
        self._seen: dict[int, list[float]] = {rung: [] for rung in self.rungs}
        self._passes: dict[int, dict[str, bool]] = {rung: {} for rung in self.rungs}

    def decide(self, trial_id: str, epoch: int, value: float, *, protected: bool = False) -> Decision:
        """Stop a trial that is outside the best 1/η of its rung; see `EarlyStopping`."""
        passes = self._passes.get(epoch)
        if passes is None:
            return Decision.CONTINUE
        if trial_id not in passes:  # the first answer stands: a replayed decision sees the same siblings
            loss, seen = self._objective.loss(value), self._seen[epoch]
            insort(seen, loss)
            at = (len(seen) - 1) / self._factor
            below, above = seen[math.floor(at)], seen[math.ceil(at)]
            passes[trial_id] = loss <= below + (above - below) * (at - math.floor(at))
        return Decision.CONTINUE if protected or passes[trial_id] else Decision.STOP

    def expected_epochs(self, max_epochs: int) -> float:
        """One trial in η passes each rung."""
        return _expected_epochs(self.rungs, self._factor, max_epochs)


class _Rung:
    """The values at one rung, and who waits there."""

    def __init__(self) -> None:
        self.first: dict[str, Decision] = {}  # by trial: what was decided on arrival
        self.passed: set[str] = set()
        self._protected: set[str] = set()  # trials that pass whatever their value
        self._ended: set[str] = set()
        self._waiting: list[tuple[float, int, str]] = []  # a heap: (loss, arrival, trial), best first

    def arrive(self, trial_id: str, loss: float, factor: int, *, protected: bool) -> Decision:
        """Enter a value; a trial that may pass goes on at once."""
        self.first[trial_id] = Decision.PAUSE
        heapq.heappush(self._waiting, (loss, len(self.first), trial_id))
        if protected:
            self._protected.add(trial_id)
        if protected or self.best_waiting(factor) == trial_id:
            self.passed.add(trial_id)
            self.first[trial_id] = Decision.CONTINUE
        return self.first[trial_id]

    def best_waiting(self, factor: int, least: int = 0) -> str | None:
        """Return the best waiting trial, as long as fewer than ``least`` or one in ``factor`` have passed."""
        while self._waiting and (self._waiting[0][2] in self.passed or self._waiting[0][2] in self._ended):
            heapq.heappop(self._waiting)
        return self._waiting[0][2] if self._waiting and self.places(factor, least) > 0 else None

    def places(self, factor: int, least: int = 0, coming: int = 0) -> int:
        """Return how many may pass yet, if ``coming`` more reach the rung; 0 or less if none."""
        passed = len(self.passed) - sum(trial_id in self.passed for trial_id in self._protected)
        reached = len(self.first) + coming
        return min(reached, max(least, reached // factor)) - passed

    def end(self, trial_id: str, *, failed: bool) -> None:
        """Let a trial wait no more; one that failed has not passed."""
        if trial_id in self.first:
            self._ended.add(trial_id)
            if failed:
                self.passed.discard(trial_id)


class AshaPromotion:
    """Asynchronous successive halving that pauses trials (Li et al. 2020, algorithm 2), with delayed promotions.

    A trial that reaches a rung waits there, its lane is free meanwhile. The best waiting one goes on as long as no more
    than one in η of those that have reached the rung has passed it (D-ASHA: Li et al. 2022, arXiv 2201.06834), which is
    so on arrival now and then. Promotions from higher rungs come first, and all of them before new trials. Without the
    delay every trial passes that is among the best 1/η on arrival: when suggestions improve that is most of them.

    Once no trial is left to begin, half of each rung passes in all. During the search what one trial costs is taken
    from others that could be begun; at its end it is not, and with three rungs one trial in 27 would be all there is to
    choose from: the best one is often among those that wait (`benchmarks/RESULTS.md`, on the truly best model). Where
    time ends a search it is taken from others to the last, and one in η remains the rule.

    Parameters are those of `AshaStopping`.
    """

    pauses = True

    def __init__(self, objective: Objective, max_epochs: int, reduction_factor: int, grace_fraction: float) -> None:
        self._objective = objective
        self._factor = reduction_factor
        self._rungs = {rung: _Rung() for rung in _geometric_rungs(max_epochs, reduction_factor, grace_fraction)}

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs of the rungs, ascending."""
        return tuple(self._rungs)

    def decide(self, trial_id: str, epoch: int, value: float, *, protected: bool = False) -> Decision:
        """Pause a trial that may not pass its rung yet; see `EarlyStopping`."""
        rung = self._rungs.get(epoch)
        if rung is None or trial_id in rung.passed:
            return Decision.CONTINUE
        if trial_id in rung.first:
            return rung.first[trial_id]
        return rung.arrive(trial_id, self._objective.loss(value), self._factor, protected=protected)

    def promote(self, *, last: bool = False, idle: bool = False) -> Promotion | None:
        """Choose the best promotable trial of the highest rung that has one; see `EarlyStopping`.

        At the end the lowest rung comes first: who passes it is still to be judged at the next.
        """
        factor = min(self._factor, LAST_FACTOR) if last else self._factor
        for epoch, rung in sorted(self._rungs.items(), reverse=not (last or idle)):
            trial_id = rung.best_waiting(factor, least=int(idle))
            if trial_id is not None:
                self.promoted(Promotion(trial_id, epoch))
                return Promotion(trial_id, epoch)
        return None

    def promoted(self, promotion: Promotion) -> None:
        """Let a trial pass; see `EarlyStopping`."""
        self._rungs[promotion.epoch].passed.add(promotion.trial_id)

    def ended(self, trial_id: str, *, failed: bool) -> None:
        """Let a trial wait no more, and another one pass in the place of one that failed; see `EarlyStopping`."""
        for rung in self._rungs.values():
            rung.end(trial_id, failed=failed)

    def expected_epochs(self, max_epochs: int) -> float:
        """Half of the trials, or one in η where that is more, have passed each rung when the search has ended."""
        return _expected_epochs(self.rungs, min(self._factor, LAST_FACTOR), max_epochs)

    def epochs_left(self, under_way: Sequence[tuple[int, float]], max_epochs: int) -> float:
        """To the next rung that judges it for each trial under way; from there on for one in η, at least one."""
        stops = [*self.rungs, max_epochs]
        end = len(self.rungs)
        coming = [next((at for at in range(end) if stops[at] > max(of)), end) for of in under_way]
        total = sum(stops[at] - epochs for at, (epochs, _) in zip(coming, under_way, strict=True))
        passing = 0
        for at, (epoch, rung) in enumerate(self._rungs.items()):
            reach = coming.count(at) + passing
            passing = max(0, rung.places(self._factor, least=1, coming=reach))
            total += passing * (stops[at + 1] - epoch)
        return float(total)


class Hyperband(NoStopping):
    """Hyperband (Li et al. 2018, JMLR 18:185), asynchronous: a bracket of successive halving from each rung on.

    A trial belongs to one bracket for good and is compared within it: some stop from the first rung on, others from a
    later one, some never, which hedges against rungs that mislead. Brackets get the shares of trials that Hyperband
    gives them, ⌈(S + 1)/(s + 1)·η^s⌉ for the bracket with s of S rungs; which one is drawn from the trial's name.

    Parameters are those of `AshaStopping`.
    """

    def __init__(self, objective: Objective, max_epochs: int, reduction_factor: int, grace_fraction: float) -> None:
        self.rungs = _geometric_rungs(max_epochs, reduction_factor, grace_fraction)
        count = len(self.rungs)
        self._brackets = [
            AshaStopping(objective, max_epochs, reduction_factor, grace_fraction, skip) for skip in range(count + 1)
        ]
        self._weights: list[int] = [
            math.ceil((count + 1) / (left + 1) * reduction_factor**left) for left in range(count, -1, -1)
        ]

    def decide(self, trial_id: str, epoch: int, value: float, *, protected: bool = False) -> Decision:
        """Stop a trial that is outside the best 1/η of its bracket's rung; see `EarlyStopping`."""
        return self._bracket(trial_id).decide(trial_id, epoch, value, protected=protected)

    def expected_epochs(self, max_epochs: int) -> float:
        """The brackets' mean by their shares."""
        each = [bracket.expected_epochs(max_epochs) for bracket in self._brackets]
        return sum(float(w) * e for w, e in zip(self._weights, each, strict=True)) / sum(self._weights)

    def _bracket(self, trial_id: str) -> AshaStopping:
        at = derive_seed("bracket", trial_id) % sum(self._weights)
        for bracket, weight in zip(self._brackets, self._weights, strict=True):
            if at < weight:
                return bracket
            at -= weight
        raise AssertionError("the weights add up")


def make_stopping(spec: SchedulerSpec, objective: Objective, max_epochs: int) -> EarlyStopping:
    """Build the early stopping that a study asks for, one for each model; its first rung is epoch 2 or later."""
    factor, grace = spec.reduction_factor, max(spec.grace_fraction, min(1.0, LEAST_EPOCHS / max_epochs - 1e-9))
    match spec.type:
        case "none":
            return NoStopping()
        case "median":
            return MedianStopping(objective, max_epochs, grace)
        case "asha":
            return AshaStopping(objective, max_epochs, factor, grace)
        case "asha-promotion":
            return AshaPromotion(objective, max_epochs, factor, grace)
        case "hyperband":
            return Hyperband(objective, max_epochs, factor, grace)


def _first_rung(max_epochs: int, grace_fraction: float) -> int:
    return max(1, math.ceil(grace_fraction * max_epochs))


def _geometric_rungs(max_epochs: int, factor: int, grace_fraction: float) -> tuple[int, ...]:
    def rungs() -> Iterator[int]:
        rung = _first_rung(max_epochs, grace_fraction)
        if rung < max_epochs:
            yield rung
        while (rung := rung * factor) <= max_epochs / 2:  # a later one would spare little
            yield rung

    return tuple(rungs())


def _expected_epochs(rungs: Sequence[int], factor: int, max_epochs: int) -> float:
    stops = [*rungs, max_epochs]
    passing = ((later - earlier) / factor ** (index + 1) for index, (earlier, later) in enumerate(pairwise(stops)))
    return float(sum(passing, float(stops[0])))
