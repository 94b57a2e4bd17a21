"""Tabular records as text: rows rendered by a template, numbers written deliberately."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sweeper.core.errors import InputError, Problem

FIELD = "field."
"""Prefix under which the raw columns of a record stay beside the text, for the data check."""

MISSING = "missing"


def default_template(names: Sequence[str]) -> str:
    """Return ``name: value`` for each column, joined by semicolons."""
    return "; ".join(f"{_escaped(name)}: {{{name}}}" for name in names)


def template_fields(template: str, place: str) -> tuple[str, ...]:
    """Return the columns that a template names, in order.

    Raises
    ------
    InputError
        When braces do not match, or a field holds more than a column's name.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        remedy = "close every brace, or write {{ for one"
        raise InputError(Problem(place, f"the template must be readable ({error})", template, remedy)) from None
    for _, name, form, conversion in parts:
        if name == "" or form or conversion:
            remedy = "write {column}; significant_digits formats numbers"
            raise InputError(Problem(place, "a template's field must be a column's name", template, remedy))
    names = tuple(dict.fromkeys(name for _, name, _, _ in parts if name is not None))
    if not names:
        raise InputError(Problem(place, "the template must name a column", template, "write {column}"))
    return names


def render(table: pa.Table, template: str, significant_digits: int) -> list[str]:
    """Return each row's text.

    Numbers keep ``significant_digits`` digits and no exponent, whole numbers all of theirs, so that a tokenizer sees
    the same digits for the same value; a missing value is written ``missing``.
    """
    parts = list(string.Formatter().parse(template))
    names = {name for _, name, _, _ in parts if name is not None}
    cells = {name: [format_value(v, significant_digits) for v in table.column(name).to_pylist()] for name in names}
    return [
        "".join(text + (cells[name][row] if name is not None else "") for text, name, _, _ in parts)
        for row in range(len(table))
    ]


def format_value(value: Any, significant_digits: int) -> str:
    """Return one cell as text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and math.isfinite(value):
        if value == int(value) and abs(value) < 10**significant_digits:
            return str(int(value))
        if not 1e-6 <= abs(value) < 1e15:
            return f"{value:.{significant_digits}g}"
        return np.format_float_positional(value, significant_digits, unique=False, fractional=False, trim="-")
    return str(value).strip()


def _escaped(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")
