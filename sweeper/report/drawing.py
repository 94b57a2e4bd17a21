"""What all figures share: the record of a figure, colours, escaping and thinning. Figures are plotly's JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from sweeper.report.source import Source

PALETTE = ("#3b7ddd", "#e07b1a", "#1f9e6b", "#a056d8", "#d64570", "#1199a8", "#8f8a1c", "#8a6d5a")
"""Colours of the models; each stands out on white and on near-black."""
SOFT = "#8b939e"
_DASHES = ("solid", "dash", "dot", "dashdot")

Trace = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Parameters
    ----------
    key:
        Its name in the page, letters and dashes.
    caption:
        Plain text; the page escapes it.
    traces, layout:
        Plotly's; every name in them is escaped already, because plotly reads markup. Colours of axes, grid and text
        come from the page's theme.
    height:
        In pixels.
    min_width:
        In pixels; on narrower screens the figure scrolls.
    """

    key: str
    title: str
    caption: str
    traces: list[Trace]
    layout: dict[str, Any]
    height: int = 360
    min_width: int = 0

    @property
    def spec(self) -> dict[str, Any]:
        """What the page's script draws."""
        return {"data": self.traces, "layout": {"height": self.height, **self.layout}}


def colour(source: Source, model: str) -> str:
    """Return a model's colour."""
    return PALETTE[source.models.index(model) % len(PALETTE)]


def dash(source: Source, model: str) -> str:
    """Return a model's line style: a new one each time the colours begin again."""
    return _DASHES[source.models.index(model) // len(PALETTE) % len(_DASHES)]


def faint(hex_colour: str, opacity: float) -> str:
    """Return a colour with an opacity between 0 and 1."""
    red, green, blue = (int(hex_colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def label(text: Any, longest: int = 40) -> str:
    """Return anyone's text as plotly shows it literally, shortened."""
    plain = str(text)
    return escape(plain if len(plain) <= longest else plain[: longest - 1] + "…")


def thinned(count: int, most: int) -> list[int]:
    """Return at most ``most`` of ``count`` positions, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def joined(lines: Sequence[Sequence[Any]]) -> list[Any]:
    """Return several lines as one, with gaps between them."""
    return [value for line in lines for value in (*line, None)]


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis with a title."""
    return {"title": {"text": title}, **more}
