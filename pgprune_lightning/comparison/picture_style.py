"""What all pictures share: a figure, colours, markers and lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Okabe and Ito's, which the colour-blind can tell apart, in an order of falling contrast."""

MARKERS = "osD^vPX*<>hp"


def new_figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, in inches."""
    # Not by pyplot, which keeps figures and may want a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10, wrap=True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def line_style(index: int) -> str:
    """Another style for each round through the colours."""
    return ("-", "--", "-.")[index // len(COLOURS) % 3]
