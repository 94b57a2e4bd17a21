"""A Gaussian process with a Matérn 5/2 kernel, a length scale for each group of features, and noise.

Hyperparameters: maximum a posteriori by L-BFGS with exact gradients (Rasmussen and Williams 2006, ch. 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri, dpotrs
from scipy.optimize import minimize

Array = NDArray[np.float64]

MAX_ITERATIONS, MAX_ITERATIONS_ON = 12, 6  # from the prior, and from an earlier fit: few data have come since
_JITTER = 1e-6


class Prior:
    """Normal priors of the logarithms of length scales, signal variance and noise variance."""

    def __init__(self, mean: Sequence[float], width: Sequence[float], groups: Sequence[int]) -> None:
        self.mean, self.width = np.asarray(mean, dtype=float), np.asarray(width, dtype=float)
        self.groups = np.asarray(groups, dtype=int)


class Process:
    """A fitted process.

    Attributes
    ----------
    theta:
        Logarithms of the length scales by group, of the signal variance and of the noise variance.
    """

    def __init__(self, points: Array, values: Array, theta: Array, groups: NDArray[np.int_]) -> None:
        self._points, self._values, self.theta, self._groups = points, values, theta, groups
        kernel, _ = _kernel(points, points, theta, groups)
        self._factor = _factor(kernel, theta)
        self._mean = float(values.mean())
        self._weights = dpotrs(self._factor, values - self._mean, lower=1)[0]

    @classmethod
    def fit(cls, points: Array, values: Array, prior: Prior, start: Sequence[float] | None) -> Process:
        """Fit (N, D) points and (N,) values of about unit scale, beginning at ``start``."""
        goes_on = start is not None and len(start) == len(prior.mean)
        first = np.asarray(start) if goes_on else prior.mean
        bounds = [(p - 4 * w, p + 4 * w) for p, w in zip(prior.mean, prior.width, strict=True)]
        found = minimize(
            negative_log_posterior,
            first,
            (points, values, prior),
            "L-BFGS-B",
            True,
            bounds=bounds,
            options={"maxiter": MAX_ITERATIONS_ON if goes_on else MAX_ITERATIONS},
        )
        return cls(points, values, found.x, prior.groups)

    def with_more(self, points: Array, values: Array) -> Process:
        """Add observations without fitting again."""
        both = np.vstack([self._points, points]), np.concatenate([self._values, values])
        return Process(*both, self.theta, self._groups)

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free value at each point."""
        cross, _ = _kernel(points, self._points, self.theta, self._groups)
        mean = self._mean + cross @ self._weights
        half = solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        variance = math.exp(self.theta[-2]) - np.einsum("ij,ij->j", half, half)
        return mean, np.sqrt(np.maximum(variance, 1e-10))


def _kernel(a: Array, b: Array, theta: Array, groups: NDArray[np.int_]) -> tuple[Array, tuple[Array, Array]]:
    """(N, M) covariances, and for gradients the scaled distances and their exponentials."""
    scale = np.exp(theta[:-2])[groups]
    scaled_a, scaled_b = a / scale, b / scale
    square = scaled_a @ scaled_b.T  # in place from here on: this is where a suggestion spends its time
    square *= -2
    square += (scaled_a**2).sum(1)[:, None]
    square += (scaled_b**2).sum(1)
    np.maximum(square, 0.0, out=square)
    square *= 5
    root = np.sqrt(square)
    decay = np.exp(-root)
    decay *= math.exp(theta[-2])
    square /= 3
    square += root
    square += 1
    square *= decay
    return square, (root, decay)


def _factor(kernel: Array, theta: Array) -> Array:
    """(N, N) lower Cholesky factor of the covariances with noise, zero above the diagonal."""
    noisy = kernel.copy()
    noisy.flat[:: len(noisy) + 1] += math.exp(theta[-1]) + _JITTER
    factor, info = dpotrf(noisy, lower=1, clean=1)
    if info:
        raise LinAlgError(f"the covariances of {len(noisy)} observations are not positive definite")
    return np.asarray(factor)


def negative_log_posterior(theta: Array, points: Array, values: Array, prior: Prior) -> tuple[float, Array]:
    """Negative log posterior of the hyperparameters, and its gradient."""
    kernel, (root, decay) = _kernel(points, points, theta, prior.groups)
    factor = _factor(kernel, theta)
    centred = values - values.mean()
    weights = dpotrs(factor, centred, lower=1)[0]
    half, _ = dpotri(factor, lower=1)
    slope = half + half.T  # the inverse, with twice its diagonal
    slope.flat[:: len(slope) + 1] *= 0.5
    slope -= np.outer(weights, weights)
    slope *= 0.5
    root += 1
    radial = slope * decay
    radial *= root
    radial *= 5 / 3
    scaled = points / np.exp(theta[:-2])[prior.groups]
    row = radial.sum(1)
    by_feature = 2 * ((scaled**2).T @ row - np.einsum("ij,ij->j", scaled, radial @ scaled))
    by_length = np.bincount(prior.groups, weights=by_feature, minlength=len(theta) - 2)
    gradient = np.concatenate([by_length, [np.vdot(slope, kernel), math.exp(theta[-1]) * np.trace(slope)]])
    off = (theta - prior.mean) / prior.width
    loss = 0.5 * centred @ weights + np.log(np.diag(factor)).sum() + 0.5 * off @ off
    return float(loss), gradient + off / prior.width
