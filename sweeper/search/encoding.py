"""Configurations of a search space as points: what a model of the scores computes with.

Two forms. *Unit rows* have one number in [0, 1) a parameter and are what is drawn and moved; every row is a
configuration, uniform rows are uniform draws from the space. *Features* are what distances are taken between:
numbers by their scale, categories one-hot, conditional numbers on an arc, so that a configuration in which such a
parameter is active is equally far from all those in which it is not (Swersky et al. 2014, arXiv 1409.4011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeper.core.space import Categorical, Float, Int, Parameter, Params, Scalar, SearchSpace

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_BELOW_ONE = 1.0 - 1e-9
_ABSENT = object()
_ON = math.sqrt(0.5)  # two categories, and the ends of an arc, are as far from each other as the ends of a range
_CHANGE_CATEGORY = 0.15  # chance that a neighbour takes another category, next to its chance of moving at all


class Encoder:
    """Turns configurations of one space into unit rows and features, and back.

    Attributes
    ----------
    groups:
        For each feature the number of the parameter that it belongs to, from 0: features of a group share a
        length scale. Parameters with one possible value have no features.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._parameters = space.parameters
        self.groups: list[int] = []
        group = 0
        for parameter in self._parameters:
            width = _num_features(parameter)
            self.groups += [group] * width
            group += width > 0

    @property
    def num_parameters(self) -> int:
        """Numbers in a unit row."""
        return len(self._parameters)

    def units(self, configurations: Sequence[Params]) -> Array:
        """(N, P) unit rows of N configurations; NaN where a parameter is not active."""
        columns = [_units(p, [params.get(p.name, _ABSENT) for params in configurations]) for p in self._parameters]
        return np.column_stack(columns) if columns else np.zeros((len(configurations), 0))

    def decode(self, unit: Sequence[float]) -> dict[str, Scalar]:
        """Turn one unit row into a configuration, parents first; numbers of inactive parameters are passed over."""
        params: dict[str, Scalar] = {}
        for parameter, at in zip(self._parameters, unit, strict=True):
            if parameter.is_active(params):
                params[parameter.name] = _value(parameter, at)
        return params

    def features(self, units: Array) -> Array:
        """(N, D) features of (N, P) unit rows; whatever an inactive parameter's number is, it changes nothing."""
        columns: list[Array] = []
        active: dict[str, Mask] = {}
        values: dict[str, Array] = {}
        for parameter, unit in zip(self._parameters, units.T, strict=True):
            on = np.ones(len(units), dtype=bool)
            for name, wanted in parameter.when.items():
                on &= active[name] & _is_one_of(self.space[name], values[name], wanted)
            active[parameter.name] = on
            values[parameter.name] = value = _values(parameter, np.where(on, unit, 0.5))
            columns += _features(parameter, value, on)
        return np.column_stack(columns) if columns else np.zeros((len(units), 0))

    def neighbours(self, units: Array, count: int, rng: np.random.Generator, widest: float = 0.3) -> Array:
        """(N * count, P) rows near N given ones: some parameters moved a little, categories changed now and then.

        Each neighbour has its own step width, log-uniform from a hundredth to ``widest`` of a range, and its own
        share of parameters that move; what was not active is drawn anew.
        """
        rows = np.repeat(units, count, axis=0)
        width = 10 ** rng.uniform(-2.0, math.log10(widest), (len(rows), 1))
        share = rng.uniform(0.2, 1.0, (len(rows), 1))
        moves = rng.random(rows.shape) < share
        moved = np.abs(rows + width * rng.standard_normal(rows.shape))
        moved = np.where(moved > 1, 2 - moved, moved)  # reflected, so that the ends are no rarer than the rest
        anew = rng.random(rows.shape)
        for index, parameter in enumerate(self._parameters):
            if isinstance(parameter, Categorical):
                changes = rng.random(len(rows)) < _CHANGE_CATEGORY
                moved[:, index] = np.where(changes, anew[:, index], rows[:, index])
        rows = np.where(moves, moved, rows)
        return np.clip(np.where(np.isnan(rows), anew, rows), 0.0, _BELOW_ONE)


def _num_features(parameter: Parameter) -> int:
    if isinstance(parameter, Categorical):
        return len(parameter.choices) if len(parameter.choices) > 1 else 0
    if parameter.low == parameter.high:
        return 0
    return 2 if parameter.when else 1


def _features(parameter: Parameter, value: Array, on: Mask) -> list[Array]:
    if not _num_features(parameter):
        return []
    if isinstance(parameter, Categorical):
        return [np.where(on & (value == index), _ON, 0.0) for index in range(len(parameter.choices))]
    low, high = float(parameter.low), float(parameter.high)
    at = np.log(value / low) / math.log(high / low) if parameter.log else (value - low) / (high - low)
    if not parameter.when:
        return [at]
    angle = 0.5 * math.pi * at
    return [np.where(on, _ON * np.cos(angle), 0.0), np.where(on, _ON * np.sin(angle), 0.0)]


def _is_one_of(parameter: Parameter, value: Array, wanted: Sequence[Scalar]) -> Mask:
    """(N,) whether encoded values (a category is its index) are among the wanted ones."""
    if isinstance(parameter, Categorical):
        wanted = [index for index, choice in enumerate(parameter.choices) if choice in wanted]
    return np.isin(value, [float(number) for number in wanted if isinstance(number, int | float)])


def _num_steps(parameter: Int) -> int:
    return (parameter.high - parameter.low) // parameter.step + 1


def _values(parameter: Parameter, unit: Array) -> Array:
    """Values at positions in [0, 1]; of a categorical parameter the index."""
    if isinstance(parameter, Categorical):
        return np.minimum(np.floor(unit * len(parameter.choices)), len(parameter.choices) - 1.0)
    low, high = float(parameter.low), float(parameter.high)
    if isinstance(parameter, Float):
        value = low * (high / low) ** unit if parameter.log else low + unit * (high - low)
        return np.clip(value, low, high)
    if parameter.log:  # half a step beyond both ends, so that these are as likely as their neighbours
        return np.clip(np.round((low - 0.5) * ((high + 0.5) / (low - 0.5)) ** unit), low, high)
    steps = _num_steps(parameter)
    return low + np.minimum(np.floor(unit * steps), steps - 1.0) * parameter.step


def _value(parameter: Parameter, at: float) -> Scalar:
    value = float(_values(parameter, np.array([at]))[0])
    if isinstance(parameter, Categorical):
        return parameter.choices[int(value)]
    return int(value) if isinstance(parameter, Int) else value


def _units(parameter: Parameter, values: Sequence[Any]) -> Array:
    """Positions of values in [0, 1): what `_values` turns into them again; NaN for those that are absent."""
    if isinstance(parameter, Categorical):
        index = {(type(choice), choice): at for at, choice in enumerate(parameter.choices)}
        at = [index.get((type(value), value), math.nan) for value in values]
        return (np.array(at, dtype=np.float64) + 0.5) / len(parameter.choices)
    number = np.array([math.nan if value is _ABSENT else value for value in values], dtype=np.float64)
    low, high = float(parameter.low), float(parameter.high)
    if isinstance(parameter, Int) and not parameter.log:
        unit = ((number - low) / parameter.step + 0.5) / _num_steps(parameter)
    elif low == high:
        unit = np.where(np.isnan(number), number, 0.0)
    else:
        if isinstance(parameter, Int):
            low, high = low - 0.5, high + 0.5
        unit = np.log(number / low) / math.log(high / low) if parameter.log else (number - low) / (high - low)
    return np.clip(unit, 0.0, _BELOW_ONE)
