"""The figures of a comparison, PNG and SVG, drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.comparison.experiment import Experiment, Picture
from pgprune_lightning.comparison.results import Results, grouped
from pgprune_lightning.evaluation.table import value_text, value_title

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


KIND_TITLES = {
    "kv_group": "attention heads (KV groups)",
    "mlp_channel": "MLP channels",
    "attention": "attentions",
    "mlp": "MLPs",
    "layer": "layers",
}


def draw_hamming(title: str, method: str, setting: dict[str, Any]) -> Figure:
    """Distance of every other mask from one, layer by layer (paper, Fig. A3)."""
    figure, axes = new_figure(7.2, 4.2, title)
    for index, (name, distances) in enumerate(setting["hamming"][method].items()):
        axes.plot(
            distances,
            color=COLOURS[index % len(COLOURS)],
            linestyle=line_style(index),
            marker=MARKERS[index % len(MARKERS)],
            label=name,
        )
    _layer_axis(axes, len(setting["sparsity"][method][next(iter(setting["sparsity"][method]))]))
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"share of units unlike the mask of {method}")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def draw_sparsity(title: str, method: str, setting: dict[str, Any]) -> Figure:
    """What a mask removes of each layer (paper, Fig. 6)."""
    kinds = setting["sparsity"][method]
    figure, axes = new_figure(7.2, 3.6, title)
    width = 0.8 / len(kinds)
    for index, (kind, shares) in enumerate(kinds.items()):
        offset = (index - (len(kinds) - 1) / 2) * width
        places = [layer + offset for layer in range(len(shares))]
        axes.bar(places, shares, width, color=COLOURS[index], label=KIND_TITLES[kind])
    _layer_axis(axes, len(shares))
    axes.set_ylim(0, 1)
    axes.set_ylabel(f"share removed by {method}")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _layer_axis(axes: Axes, num_layers: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("layer")
    axes.set_xlim(-0.6, num_layers - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)


DOTS_PER_INCH = 150

_OVERVIEWS: dict[str, Callable[[Picture, Results], Figure]] = {
    "bars": draw_bars,
    "lines": draw_lines,
}
_BY_LAYER: dict[str, Callable[[str, str, dict[str, Any]], Figure]] = {
    "hamming": draw_hamming,
    "sparsity": draw_sparsity,
}


def draw(experiment: Experiment, results: Results, output: Path) -> list[str]:
    """Draw the pictures of an experiment.

    Args:
        experiment: Says which.
        results: What they show.
        output: Their folder.

    Returns:
        Names of the files.
    """
    import matplotlib as mpl

    names = []
    for position, picture in enumerate(experiment.pictures, 1):
        for label, figure in _figures(picture, experiment, results):
            stem = "_".join(filter(None, (f"picture{position}", picture.kind, label)))
            for suffix in ("png", "svg"):
                # Without a date and with fixed ids, equal results are equal files.
                with mpl.rc_context({"svg.hashsalt": "pgprune"}):
                    metadata = {"Date": None} if suffix == "svg" else None
                    content = io.BytesIO()
                    figure.savefig(content, format=suffix, dpi=DOTS_PER_INCH, metadata=metadata)
                write_atomically(output / f"{stem}.{suffix}", content.getvalue())
                names.append(f"{stem}.{suffix}")
    return names


def _figures(
    picture: Picture, experiment: Experiment, results: Results
) -> Iterator[tuple[str, Figure]]:
    """A picture of each group of settings, or one of each where it shows one setting's layers."""
    if picture.kind in ("bars", "lines"):
        for group, settings in grouped(results["settings"]).items():
            title = "\n".join(filter(None, (results["title"], group)))
            part = results | {"title": title, "settings": settings}
            yield group.replace(" ", "_"), _OVERVIEWS[picture.kind](picture, part)
        return
    several = len(results["settings"]) > 1
    for label, setting in results["settings"].items():
        method = picture.method or _default_method(experiment, setting)
        if method is not None and method in setting["sparsity"]:
            title = f"{results['title']}\n{picture.x_label} {label}" if several else ""
            figure = _BY_LAYER[picture.kind](title or results["title"], method, setting)
            yield label.replace(" ", "_") if several else "", figure


def _default_method(experiment: Experiment, setting: dict[str, Any]) -> str | None:
    names = list(setting["sparsity"])
    learned = [name for name in names if experiment.methods[name].kind == "learned"]
    return next(iter([*reversed(learned), *reversed(names)]), None)
