"""Search spaces: floats, integers and categories, each possibly active only under a condition."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Scalar: TypeAlias = str | int | float | bool | None
Params: TypeAlias = Mapping[str, Scalar]
When: TypeAlias = Mapping[str, tuple[Scalar, ...]]

BOUNDARY_SHARE = 0.05  # a best value within 5% of a range's end (in its scale) asks for a wider range


@dataclass(frozen=True, kw_only=True)
class _Parameter:
    name: str
    when: When = field(default_factory=dict)

    def is_active(self, params: Params) -> bool:
        """Whether every condition holds: each named parameter is present with one of the values."""
        return all(name in params and params[name] in values for name, values in self.when.items())


@dataclass(frozen=True, kw_only=True)
class _Number(_Parameter):
    low: float
    high: float
    log: bool = False

    def fraction(self, value: float) -> float:
        """Position of ``value`` between ``low`` (0) and ``high`` (1), in the parameter's own scale."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return 0.0 if high == low else (at - low) / (high - low)

    def boundary(self, value: float) -> str | None:
        """``"low"`` or ``"high"`` where the value lies within 5% of that end, else None."""
        if self.low == self.high:
            return None
        at = self.fraction(value)
        return "low" if at <= BOUNDARY_SHARE else "high" if at >= 1 - BOUNDARY_SHARE else None


@dataclass(frozen=True, kw_only=True)
class Float(_Number):
    """A real number in ``[low, high]``, uniform or log-uniform."""

    def contains(self, value: Scalar) -> bool:
        """Whether ``value`` is a finite number inside the range."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Int(_Number):
    """An integer in ``{low, low + step, ..., high}``, uniform or (with step 1) log-uniform."""

    low: int
    high: int
    step: int = 1

    def contains(self, value: Scalar) -> bool:
        """Whether ``value`` is an integer of the grid."""
        return (
            isinstance(value, int)
            and not isinstance(value, bool)
            and self.low <= value <= self.high
            and (value - self.low) % self.step == 0
        )


@dataclass(frozen=True, kw_only=True)
class Categorical(_Parameter):
    """One of ``choices``; a single choice is a fixed parameter."""

    choices: tuple[Scalar, ...]

    def contains(self, value: Scalar) -> bool:
        """Whether ``value`` is one of the choices, of the same type (``1`` is not ``True``)."""
        return any(value == choice and type(value) is type(choice) for choice in self.choices)


Parameter: TypeAlias = Float | Int | Categorical


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Parameters in an order in which each stands after those its condition names, and a default.

    Parameters
    ----------
    parameters:
        Parents before children; names are unique.
    default:
        The configuration of trial 0; a value for every parameter that is active under it.
    source:
        Where the ranges come from, printed in the report.
    """

    parameters: tuple[Parameter, ...]
    default: Params
    source: str = ""

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters)

    def __getitem__(self, name: str) -> Parameter:
        return next(parameter for parameter in self.parameters if parameter.name == name)

    def active(self, params: Params) -> dict[str, Scalar]:
        """``params`` without the inactive ones, in the space's order: what a trial really uses.

        Names that the space does not know are kept at the end: fixed settings from elsewhere.
        """
        kept: dict[str, Scalar] = {}
        for parameter in self.parameters:
            if parameter.name in params and parameter.is_active(kept):
                kept[parameter.name] = params[parameter.name]
        known = {parameter.name for parameter in self.parameters}
        return kept | {name: value for name, value in params.items() if name not in known}

    def boundary_flags(self, params: Params) -> dict[str, str]:
        """Names of numeric parameters whose value lies within 5% of a range's end, with the end."""
        flags: dict[str, str] = {}
        for parameter in self.parameters:
            value = params.get(parameter.name)
            if isinstance(parameter, Float | Int) and isinstance(value, int | float):
                end = parameter.boundary(value)
                if end is not None:
                    flags[parameter.name] = end
        return flags
