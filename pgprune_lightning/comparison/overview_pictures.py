"""A value of every method: marks side by side, or lines over the settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pgprune_lightning.comparison.experiment import Picture
from pgprune_lightning.comparison.picture_style import COLOURS, MARKERS, line_style, new_figure
from pgprune_lightning.comparison.results import Results
from pgprune_lightning.comparison.table_values import value_text, value_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG_ABOVE = 5.0
"""Values whose largest is this many times the smallest get a logarithmic axis."""


def draw_bars(picture: Picture, results: Results) -> Figure:
    """A mark for each method, and for each setting where there are several."""
    settings = results["settings"]
    names = list(dict.fromkeys(name for s in settings.values() for name in s["methods"]))
    marks_per_name = max(1.0, 0.6 * len(settings))
    figure, axes = new_figure(7.2, 1.3 + 0.34 * len(names) * marks_per_name, results["title"])
    values = []
    for index, (label, setting) in enumerate(settings.items()):
        offset = (index - (len(settings) - 1) / 2) * 0.7 / len(settings)
        entries = _shown_entries(setting, picture.value)
        values += [entry[picture.value] for entry in entries.values()]
        axes.errorbar(
            [entry[picture.value] for entry in entries.values()],
            [names.index(name) + offset for name in entries],
            xerr=_deviations(entries, picture.value),
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle="none",
            capsize=3,
            label=label,
        )
        for name, entry in entries.items():
            _label_mark(axes, entry, picture.value, names.index(name) + offset)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    _scale(axes, "x", values)
    axes.margins(x=0.15)
    axes.set_xlabel(value_title(picture.value))
    if len(settings) > 1:
        axes.legend(title=picture.x_label, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _label_mark(axes: Axes, entry: dict[str, Any], value: str, place: float) -> None:
    end_of_bar = entry[value] + (entry["deviation"].get(value) or 0.0)
    axes.annotate(
        value_text(value, entry[value]),
        (end_of_bar, place),
        xytext=(7, 0),
        textcoords="offset points",
        verticalalignment="center",
        fontsize=8,
    )


def draw_lines(picture: Picture, results: Results) -> Figure:
    """A line for each method over the settings."""
    settings = results["settings"]
    positions, labels = _positions(list(settings))
    figure, axes = new_figure(7.2, 4.6, results["title"])
    names = list(dict.fromkeys(name for s in settings.values() for name in s["methods"]))
    values = []
    for index, name in enumerate(names):
        shown = {
            position: setting["methods"][name]
            for position, setting in zip(positions, settings.values(), strict=True)
            if name in _shown_entries(setting, picture.value)
        }
        values += [entry[picture.value] for entry in shown.values()]
        dense = all(entry["kind"] == "dense" for entry in shown.values())
        axes.errorbar(
            list(shown),
            [entry[picture.value] for entry in shown.values()],
            yerr=_deviations(shown, picture.value),
            color="0.45" if dense else COLOURS[index % len(COLOURS)],
            linestyle=":" if dense else line_style(index),
            marker="" if dense else MARKERS[index % len(MARKERS)],
            capsize=3,
            label=name,
        )
    axes.set_xticks(positions, labels)
    if positions[0] > positions[-1]:
        axes.invert_xaxis()
    _scale(axes, "y", values)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel(picture.x_label)
    axes.set_ylabel(value_title(picture.value))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _positions(labels: Sequence[str]) -> tuple[list[float], Sequence[str]]:
    """Where settings stand: by their numbers in the file's order, else side by side."""
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return [float(index) for index in range(len(labels))], labels
    if numbers in (sorted(numbers), sorted(numbers, reverse=True)):
        return numbers, labels
    return [float(index) for index in range(len(labels))], labels


def _shown_entries(setting: dict[str, Any], value: str) -> dict[str, dict[str, Any]]:
    """Methods that have the value; one that overflows has none."""
    return {name: e for name, e in setting["methods"].items() if e[value] is not None}


def _deviations(entries: dict[Any, dict[str, Any]], value: str) -> list[float] | None:
    deviations = [entry["deviation"].get(value) or 0.0 for entry in entries.values()]
    return deviations if any(deviations) else None


def _scale(axes: Axes, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers where values are far apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    positive = [value for value in values if value > 0]
    if len(positive) < len(values) or max(values, default=1) < LOG_ABOVE * min(values, default=1):
        return
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
