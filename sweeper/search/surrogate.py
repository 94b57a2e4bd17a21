"""The package's own sampler: a Gaussian process over (configuration, epoch) that learns from stopped trials.

A trial gives one observation for each epoch at which trials ended that it reached. A mean course of training is taken
off first, so that a trial that was stopped early is compared with what others had reached at that epoch; the process
then predicts values at the full budget. It is never told that a stopped trial was complete.

- Start: the default, then a scrambled Sobol sequence (Owen 1998), so that few trials cover the space. Later on every
  fourth suggestion goes on with it, against a process that is wrong and sure: what costs a trial little, because early
  stopping ends most of them soon, frees searches that are stuck (as the random third of BOHB, Falkner et al. 2018).
- Scores: bad ones are cut off (winsorised), because what matters is the shape near the best.
- Acquisition: expected improvement (Jones et al. 1998) at the full budget over random points and points near the best
  ones, the most promising of which are then moved further. Trials under way count with their predicted value (kriging
  believer, Ginsbourger et al. 2010).
- Trials that failed or were infeasible say nothing about scores. A second process, of how they ended, gives the chance
  that a configuration ends well, by which the improvement is multiplied (Gelbart et al. 2014, arXiv 1403.5607).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from sweeper.core.space import Params, Scalar, SearchSpace
from sweeper.search.encoding import Encoder
from sweeper.search.process import Prior, Process

Array = NDArray[np.float64]

NUM_STARTUP = 6  # trials, the default among them, before the process suggests
SPREAD_EVERY = 4  # later on one suggestion in so many goes on with the Sobol sequence
MIN_OBSERVED = 4  # usable trials that it needs
MAX_OBSERVATIONS = 128  # fitted at once; keeps a suggestion's cost bounded
NUM_ENDS = 30  # latest failures, and latest trials without one, that the chance of success is learnt from
MAX_EPOCHS_SEEN = 5  # epochs of one trial that are looked at
NUM_RANDOM, NUM_NEAR, NUM_CENTRES = 512, 64, 8
NUM_BEST, NUM_MOVED, WIDTHS = 8, 16, (0.1, 0.03)  # the best candidates are moved, by at most these shares of a range
LARGEST = 1e100  # of a loss
WORST = -6.0  # in units of (90% quantile - median): nearer, and all but the neighbourhood of the best would look alike
LEAST_CHANCE = 1e-3

LENGTH_SCALE = 0.6  # of a parameter's range, before anything is known
EPOCH_SCALE = 1.5  # of the natural logarithm of the epoch
NOISE = 0.02  # variance, of scores of about unit variance


@dataclass(frozen=True)
class Observed:
    """What is known of one trial: its losses by epoch (lower is better), or that it failed."""

    params: Params
    losses: Mapping[int, float]
    failed: bool = False

    @cached_property
    def end(self) -> int:
        """The last epoch that was measured."""
        return max(self.losses)


@dataclass(frozen=True)
class Suggestion:
    """A configuration, and the logarithms of the hyperparameters that it was found with.

    ``params`` is None where none of the candidates is new.
    """

    params: dict[str, Scalar] | None
    theta: list[float]


def startup(space: SearchSpace, index: int, seed: int) -> dict[str, Scalar]:
    """Return point ``index``, from 0, of the scrambled Sobol sequence of ``seed``."""
    from scipy.stats.qmc import Sobol  # a second of imports, which the driver has no need of while lanes come up

    sequence = Sobol(max(len(space.parameters), 1), scramble=True, rng=np.random.default_rng(seed))
    if index:
        sequence.fast_forward(index)
    return Encoder(space).decode(sequence.random(1)[0, : len(space.parameters)].tolist())


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """What a suggestion depends on.

    Parameters
    ----------
    observed:
        Trials that ended, in any order that is always the same.
    running:
        Trials under way.
    max_epochs:
        The full budget, at which predictions are made.
    is_new:
        Whether a configuration may be suggested.
    theta:
        `Suggestion.theta` of the last fit.
    refit:
        Whether hyperparameters are fitted anew, beginning at ``theta``; else ``theta`` is used as it is.
    """

    space: SearchSpace
    observed: Sequence[Observed]
    running: Sequence[Params]
    max_epochs: int
    is_new: Callable[[Params], bool] = lambda params: True  # noqa: ARG005
    theta: Sequence[float] | None = None
    refit: bool = True

    def suggest(self, seed: int) -> Suggestion:
        """Suggest a configuration; at least one of the observed trials must not have failed."""
        rng = np.random.default_rng(seed)
        encoder = Encoder(self.space)
        scores = _scores(encoder, self.observed, self.max_epochs)
        process = self._process(encoder, scores)
        acquisition = self._acquisition(encoder, process, scores)
        random = rng.random((NUM_RANDOM, encoder.num_parameters))
        near = encoder.neighbours(encoder.units(scores.best), NUM_NEAR, rng)
        candidates, gains = _climb(encoder, np.vstack([random, near]), acquisition, rng)
        order = np.argsort(-gains, kind="stable")
        ranked = (encoder.decode(candidates[index].tolist()) for index in order)
        return Suggestion(next(filter(self.is_new, ranked), None), process.theta.tolist())

    def _process(self, encoder: Encoder, scores: _Scores) -> Process:
        prior = _prior(encoder, with_epoch=True)
        if self.refit or self.theta is None or len(self.theta) != len(prior.mean):
            return Process.fit(scores.points, scores.values, prior, self.theta)
        return Process(scores.points, scores.values, np.asarray(self.theta), prior.groups)

    def _acquisition(self, encoder: Encoder, process: Process, scores: _Scores) -> Callable[[Array], Array]:
        """Return the function from (N, P) unit rows to the logarithms of what trying them is expected to gain."""
        if self.running:
            believed = _at_full(encoder.features(encoder.units(self.running)))
            process = process.with_more(believed, process.predict(believed)[0])
        best = float(process.predict(_at_full(np.unique(scores.points[:, :-1], axis=0)))[0].max())
        chance = _chance_of_success(encoder, self.observed)

        def gain(units: Array) -> Array:
            features = encoder.features(units)
            return _log_improvement(*process.predict(_at_full(features)), best) + np.log(chance(features))

        return gain


def _climb(
    encoder: Encoder, units: Array, gain: Callable[[Array], Array], rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return the candidates and their gains, with neighbours of the best ones among them."""
    gains = gain(units)
    for width in WIDTHS:
        best = units[np.argsort(-gains, kind="stable")[:NUM_BEST]]
        moved = encoder.neighbours(best, NUM_MOVED, rng, width)
        units, gains = np.vstack([units, moved]), np.concatenate([gains, gain(moved)])
    return units, gains


def _prior(encoder: Encoder, *, with_epoch: bool) -> Prior:
    groups = list(encoder.groups)
    num = max(groups, default=-1) + 1
    epoch = [math.log(EPOCH_SCALE)] if with_epoch else []
    mean = [*[math.log(LENGTH_SCALE)] * num, *epoch, 0.0, math.log(NOISE)]
    width = [*[0.8] * (num + len(epoch)), 0.7, 1.2]
    return Prior(mean, width, [*groups, num] if with_epoch else groups)


@dataclass(frozen=True)
class _Scores:
    """Observations: (N, D + 1) points with the logarithm of the share of the budget, (N,) scores, higher is better.

    ``best`` are the configurations of the best trials.
    """

    points: Array
    values: Array
    best: list[Params]


def _scores(encoder: Encoder, observed: Sequence[Observed], max_epochs: int) -> _Scores:
    usable = [trial for trial in observed if not trial.failed]
    ends = np.array([trial.end for trial in usable])
    epochs = _epochs_looked_at(ends, max_epochs)
    table = np.array([[*(t.losses.get(epoch, math.nan) for epoch in epochs), t.losses[t.end]] for t in usable])
    table = np.clip(table, -LARGEST, LARGEST)
    table[np.isin(ends, epochs), -1] = math.nan  # stands in another column already
    reached = np.column_stack([np.broadcast_to(epochs, (len(usable), len(epochs))), ends])
    usual = np.interp(np.log(reached), np.log(epochs), _mean_course(table[:, :-1]))
    trial, column = np.nonzero(~np.isnan(table))
    values = _standardised((usual - table)[trial, column])
    order = np.argsort(-values, kind="stable")
    best = [usable[index].params for index in _first_different(trial[order].tolist(), NUM_CENTRES)]
    kept = _thinned(order)
    features = encoder.features(encoder.units([usable[index].params for index in trial[kept]]))
    share = np.log(reached[trial[kept], column[kept]] / max_epochs)
    return _Scores(np.column_stack([features, share]), values[kept], best)


def _standardised(values: Array) -> Array:
    """Return scores in units of (90% quantile - median) from the median, the bad ones cut off."""
    middle = float(np.median(values))
    scale = float(np.quantile(values, 0.9)) - middle or 1.0
    return np.maximum((values - middle) / scale, WORST)


def _first_different(numbers: Iterable[int], count: int) -> list[int]:
    found: dict[int, None] = {}
    for number in numbers:
        found[number] = None
        if len(found) == count:
            break
    return list(found)


def _thinned(best_first: NDArray[np.intp]) -> list[int]:
    """Return the rows to fit, ascending: all, or of many the best third, the latest third, and others spread evenly."""
    num, third = len(best_first), MAX_OBSERVATIONS // 3
    if num <= MAX_OBSERVATIONS:
        return list(range(num))
    kept = {*best_first[:third].tolist(), *range(num - third, num)}
    others = [row for row in range(num) if row not in kept]
    spread = np.linspace(0, len(others) - 1, MAX_OBSERVATIONS - len(kept)).round().astype(int)
    return sorted(kept | {others[at] for at in spread})


def _epochs_looked_at(ends: NDArray[np.int_], max_epochs: int) -> list[int]:
    """Return the epochs at which trials ended; of many different ones a few, such that as many end between any two."""
    different = sorted({*ends.tolist(), max_epochs})
    if len(different) <= MAX_EPOCHS_SEEN:
        return different
    quantiles = np.quantile(ends, np.linspace(0, 1, MAX_EPOCHS_SEEN), method="nearest")
    return sorted({*quantiles.astype(int).tolist(), max_epochs})


def _mean_course(losses: Array) -> list[float]:
    """Return the loss of an average trial at each epoch, up to a constant: median steps of trials with both epochs.

    ``losses``: (N, E), NaN where a trial has not reached the epoch.
    """
    course = [0.0]
    for steps in np.diff(losses, axis=1).T:
        known = steps[~np.isnan(steps)]
        course.append(course[-1] + (float(np.median(known)) if len(known) else 0.0))
    return course


def _chance_of_success(encoder: Encoder, observed: Sequence[Observed]) -> Callable[[Array], Array]:
    """Return the function from (N, D) features to the chance that a trial there does not fail."""
    failures = [trial for trial in observed if trial.failed][-NUM_ENDS:]
    if not failures:
        return lambda features: np.ones(len(features))
    others = [trial for trial in observed if not trial.failed][-NUM_ENDS:]
    points = encoder.features(encoder.units([trial.params for trial in (*failures, *others)]))
    ended_well = np.repeat([0.0, 1.0], [len(failures), len(others)])
    spread = float(ended_well.std()) or 1.0
    process = Process.fit(points, (ended_well - ended_well.mean()) / spread, _prior(encoder, with_epoch=False), None)

    def chance(features: Array) -> Array:
        mean, deviation = process.predict(features)
        latent = ended_well.mean() + spread * mean
        well: Array = ndtr((latent - 0.5) / (spread * np.maximum(deviation, 0.1)))
        return np.maximum(well, LEAST_CHANCE)

    return chance


def _at_full(features: Array) -> Array:
    return np.column_stack([features, np.zeros(len(features))])


def _log_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Logarithm of the expected improvement, stable far below the best."""
    z = (mean - best) / deviation
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    improvement = density + z * ndtr(z)
    far = np.log(density + 1e-300) - 2 * np.log(np.maximum(np.abs(z), 1.0))
    near = np.log(np.maximum(improvement, 1e-300))
    return np.where(z > -5, near, far) + np.log(deviation)
