"""A Gaussian process over (configuration, epoch): learns from stopped trials what they are, partial curves.

Every trial gives one observation at each epoch at which any trial ended. A mean course of training is taken off first,
so that a trial that was stopped early is compared with what others had reached at that epoch; the process then
predicts values at the full budget. It is never told that a stopped trial was complete.

Kernel: Matérn 5/2 with one length scale a dimension, the logarithm of the epoch among them; maximum a posteriori by
L-BFGS with exact gradients (Rasmussen and Williams 2006, ch. 5). Acquisition: expected improvement (Jones et al. 1998)
over random points and points near the best ones; trials under way count with their predicted value (kriging believer,
Ginsbourger et al. 2010). Bad values are cut off (winsorised): what matters is the shape near the best ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.special import ndtr

from sweeper.core.space import Categorical, Float, Int, Params, Scalar, SearchSpace

Array = NDArray[np.float64]

MAX_OBSERVATIONS = 160  # fitted at once: the best and the latest; keeps a suggestion's cost bounded
NUM_RANDOM, NUM_NEAR, NUM_CENTRES = 384, 48, 6
EXPLORATION = 0.08  # share of suggestions that are random whatever the process believes
WORST = -3.0  # in units of (90% quantile - median)
LENGTH_SCALE = 0.6  # of a parameter's range, before anything is known
_MAX_ITERATIONS = 12


@dataclass(frozen=True)
class Observed:
    """What is known of one trial: its losses by epoch (lower is better), or that it failed."""

    params: Params
    losses: Mapping[int, float]
    failed: bool = False


class Encoder:
    """Configurations of a space as points of a unit cube: numbers by their scale, categories one-hot."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def encode(self, configurations: Sequence[Params]) -> Array:
        """(N, D) points; inactive parameters lie in the middle."""
        return np.array([self._row(params) for params in configurations], dtype=np.float64)

    def _row(self, params: Params) -> list[float]:
        row: list[float] = []
        for parameter in self.space:
            value = params.get(parameter.name)
            if isinstance(parameter, Categorical):
                if len(parameter.choices) > 1:
                    on = math.sqrt(0.5)
                    row += [on if parameter.name in params and value == c else 0.0 for c in parameter.choices]
            elif parameter.low < parameter.high:
                row.append(parameter.fraction(float(value)) if isinstance(value, int | float) else 0.5)
        return row

    def decode(self, unit: Sequence[float]) -> dict[str, Scalar]:
        """Turn one number in [0, 1) a parameter into a configuration, parents first."""
        params: dict[str, Scalar] = {}
        for parameter, at in zip(self.space, unit, strict=True):
            if parameter.is_active(params):
                params[parameter.name] = _value(parameter, at)
        return params

    def near(self, params: Params, rng: np.random.Generator) -> dict[str, Scalar]:
        """Change some parameters of a configuration a little; what becomes active is drawn anew."""
        found: dict[str, Scalar] = {}
        width = 10 ** rng.uniform(-2.0, -0.5)
        share = rng.uniform(0.2, 1.0)
        for parameter in self.space:
            if not parameter.is_active(found):
                continue
            value = params.get(parameter.name)
            if parameter.name not in params or (isinstance(parameter, Categorical) and rng.random() < 0.15 * share):
                found[parameter.name] = _value(parameter, rng.random())
            elif isinstance(parameter, Float | Int) and isinstance(value, int | float) and rng.random() < share:
                at = parameter.fraction(float(value)) + width * rng.standard_normal()
                found[parameter.name] = _value(parameter, min(max(at, 0.0), 1.0 - 1e-9))
            else:
                found[parameter.name] = value
        return found


def _value(parameter: Float | Int | Categorical, at: float) -> Scalar:
    if isinstance(parameter, Categorical):
        return parameter.choices[min(int(at * len(parameter.choices)), len(parameter.choices) - 1)]
    low, high = float(parameter.low), float(parameter.high)
    value = low * (high / low) ** at if parameter.log else low + at * (high - low)
    if isinstance(parameter, Float):
        return min(max(value, low), high)
    steps = round((value - low) / parameter.step)
    return min(
        int(low) + steps * parameter.step,
        parameter.low + (parameter.high - parameter.low) // parameter.step * parameter.step,
    )


def suggest(
    space: SearchSpace,
    observed: Sequence[Observed],
    running: Sequence[Params],
    max_epochs: int,
    seed: int,
    start: Sequence[float] | None = None,
) -> tuple[dict[str, Scalar], list[float]]:
    """Suggest a configuration.

    Parameters
    ----------
    observed:
        Trials that ended, in any order that is always the same.
    running:
        Trials under way.
    max_epochs:
        The full budget, at which predictions are made.
    start:
        The hyperparameters of the suggestion before, from which the fit goes on.

    Returns
    -------
    The configuration, and the logarithms of the fitted hyperparameters.
    """
    rng = np.random.default_rng(seed)
    encoder = Encoder(space)
    num = len(space.parameters)
    random = [encoder.decode(row.tolist()) for row in rng.random((NUM_RANDOM, num))]
    explore = rng.random() < EXPLORATION
    points, values, centres = _observations(encoder, observed, max_epochs)
    process = _Process.fit(points, values, start)
    if explore:
        return random[0], process.theta.tolist()
    near = [encoder.near(centre, rng) for centre in centres for _ in range(NUM_NEAR)]
    candidates = [*random, *near]
    if running:
        believed = _at_full(encoder.encode(running))
        process = process.with_more(believed, process.predict(believed)[0])
    mean, deviation = process.predict(_at_full(encoder.encode(candidates)))
    at_known = process.predict(_at_full(points[:, :-1]))[0]
    return candidates[int(np.argmax(_log_improvement(mean, deviation, float(at_known.max()))))], process.theta.tolist()


def _observations(encoder: Encoder, observed: Sequence[Observed], max_epochs: int) -> tuple[Array, Array, list[Params]]:
    """Return (N, D + 1) points, (N,) scores of which higher is better, and the best configurations."""
    ends = sorted({max(o.losses) for o in observed if o.losses and not o.failed})
    course = _mean_course(observed, ends)
    rows: list[tuple[int, float, float]] = []  # trial, epoch coordinate, score
    for index, trial in enumerate(observed):
        if not trial.failed:
            rows += [
                (index, math.log(epoch / max_epochs), course[epoch] - trial.losses[epoch])
                for epoch in ends
                if epoch in trial.losses and math.isfinite(trial.losses[epoch])
            ]
    scores = np.array([score for *_, score in rows])
    middle = float(np.median(scores))
    scale = float(np.quantile(scores, 0.9)) - middle or 1.0
    scores = np.maximum((scores - middle) / scale, WORST)
    rows += [(index, 0.0, WORST) for index, trial in enumerate(observed) if trial.failed]
    scores = np.concatenate([scores, np.full(len(rows) - len(scores), WORST)])
    encoded = encoder.encode([trial.params for trial in observed])
    points = np.array([[*encoded[index], at] for index, at, _ in rows])
    best_first = np.argsort(-scores, kind="stable")
    centres: dict[int, None] = {}
    for row in best_first:
        centres.setdefault(rows[row][0])
        if len(centres) == NUM_CENTRES:
            break
    if len(rows) > MAX_OBSERVATIONS:
        half = MAX_OBSERVATIONS // 2
        kept = set(best_first[:half].tolist())
        kept |= set([i for i in range(len(rows) - 1, -1, -1) if i not in kept][:half])
        keep = sorted(kept)
        points, scores = points[keep], scores[keep]
    return points, scores, [observed[index].params for index in centres]


def _mean_course(observed: Sequence[Observed], ends: Sequence[int]) -> dict[int, float]:
    """Return the loss of an average trial at each epoch, up to a constant: median steps of trials with both ends."""
    course: dict[int, float] = {}
    at = 0.0
    for before, epoch in zip([None, *ends], ends, strict=False):
        if before is not None:
            steps = [o.losses[epoch] - o.losses[before] for o in observed if epoch in o.losses and before in o.losses]
            finite = [step for step in steps if math.isfinite(step)]
            at += float(np.median(finite)) if finite else 0.0
        course[epoch] = at
    return course


def _at_full(points: Array) -> Array:
    return np.column_stack([points, np.zeros(len(points))])


def _log_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Logarithm of the expected improvement, stable far below the best."""
    z = (mean - best) / deviation
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    improvement = density + z * ndtr(z)
    far = np.log(density + 1e-300) - 2 * np.log(np.maximum(np.abs(z), 1.0))
    return np.log(deviation) + np.where(z > -5, np.log(np.maximum(improvement, 1e-300)), far)


class _Process:
    """Gaussian process regression; ``theta``: log length scales (D), log signal and log noise variance."""

    def __init__(self, points: Array, values: Array, theta: Array) -> None:
        self.theta = theta
        self._points, self._values = points, values
        kernel, _ = _kernel(points, points, theta)
        kernel[np.diag_indices_from(kernel)] += math.exp(theta[-1]) + 1e-6
        self._factor = cho_factor(kernel, lower=True)
        self._mean = float(values.mean())
        self._weights = cho_solve(self._factor, values - self._mean)

    @classmethod
    def fit(cls, points: Array, values: Array, start: Sequence[float] | None) -> _Process:
        size = points.shape[1]
        prior = np.array([*[math.log(LENGTH_SCALE)] * (size - 1), math.log(1.5), 0.0, math.log(0.02)])
        width = np.array([*[0.8] * size, 0.7, 1.2])
        first = prior if start is None or len(start) != len(prior) else np.asarray(start)
        bounds = [(p - 4 * w, p + 4 * w) for p, w in zip(prior, width, strict=True)]
        found = minimize(
            _loss,
            first,
            (points, values, prior, width),
            "L-BFGS-B",
            True,
            bounds=bounds,
            options={"maxiter": _MAX_ITERATIONS},
        )
        return cls(points, values, found.x)

    def with_more(self, points: Array, values: Array) -> _Process:
        """Add observations without fitting again."""
        return _Process(np.vstack([self._points, points]), np.concatenate([self._values, values]), self.theta)

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free value at each point."""
        cross, _ = _kernel(points, self._points, self.theta)
        mean = self._mean + cross @ self._weights
        half = solve_triangular(self._factor[0], cross.T, lower=True)
        variance = math.exp(self.theta[-2]) - np.einsum("ij,ij->j", half, half)
        return mean, np.sqrt(np.maximum(variance, 1e-10))


def _kernel(a: Array, b: Array, theta: Array) -> tuple[Array, tuple[Array, Array]]:
    scaled_a, scaled_b = a / np.exp(theta[:-2]), b / np.exp(theta[:-2])
    square = np.maximum((scaled_a**2).sum(1)[:, None] + (scaled_b**2).sum(1)[None] - 2 * scaled_a @ scaled_b.T, 0.0)
    root = np.sqrt(5 * square)
    decay = math.exp(theta[-2]) * np.exp(-root)
    return decay * (1 + root + root**2 / 3), (root, decay)


def _loss(theta: Array, points: Array, values: Array, prior: Array, width: Array) -> tuple[float, Array]:
    """Negative log posterior and its gradient."""
    kernel, (root, decay) = _kernel(points, points, theta)
    noise = math.exp(theta[-1])
    noisy = kernel + (noise + 1e-6) * np.eye(len(kernel))
    factor = cho_factor(noisy, lower=True)
    centred = values - values.mean()
    weights = cho_solve(factor, centred)
    inverse = cho_solve(factor, np.eye(len(kernel)))
    slope = 0.5 * (inverse - np.outer(weights, weights))
    radial = slope * decay * (1 + root) * (5 / 3)
    scaled = points / np.exp(theta[:-2])
    row = radial.sum(1)
    by_length = 2 * ((scaled**2).T @ row - np.einsum("ij,ij->j", scaled, radial @ scaled))
    gradient = np.concatenate([by_length, [(slope * kernel).sum(), noise * np.trace(slope)]])
    off = (theta - prior) / width
    loss = 0.5 * centred @ weights + np.log(np.diag(factor[0])).sum() + 0.5 * off @ off
    return float(loss), gradient + off / width
