"""The charts of a report: lines, heat maps of keep-probabilities, bars of sparsity by layer.

matplotlib draws them as SVG in the light theme's colours. `_svg` replaces each colour by its
variable in `templates/style.css`, so that a chart follows the theme of its reader.

Shapes: U units, N units of one layer and kind.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from markupsafe import Markup, escape
from torch import Tensor

from pgprune_lightning.number_text import plain_text, share_text
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.policy import UnitKind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]

INK, SOFT, LINE, PAPER = "#1b1f24", "#59636e", "#d5dbe2", "#ffffff"
LINES = (
    *("#0072b2", "#d55e00", "#008a62", "#b4558c"),
    *("#b27c00", "#3d9bd1", "#30343a", "#8c6d31"),
)
"""Okabe and Ito's colours, darkened until they stand out on paper."""
HEAT = (
    *("#f3f6fa", "#e2ebf4", "#cfdfee", "#b6d0e6", "#98bedc", "#77a9cf"),
    *("#5591c0", "#3a78ae", "#255f99", "#154780", "#082f63"),
)
"""From little to much."""
VARIABLES = {
    **{INK: "--ink", SOFT: "--soft", LINE: "--line", PAPER: "--paper"},
    **{colour: f"--s{index}" for index, colour in enumerate(LINES)},
    **{colour: f"--h{index}" for index, colour in enumerate(HEAT)},
}
"""The names that templates/style.css gives to the colours of the light theme."""

KIND_NAMES: dict[UnitKind, str] = {
    "kv_group": "KV groups",
    "mlp_channel": "MLP channels",
    "attention": "attention sub-layers",
    "mlp": "MLPs",
    "layer": "whole layers",
}

SIZE = (5.2, 3.0)
"""Width and height of a chart in inches; the page scales it to its column."""
LOGARITHMIC_FROM = 8.0
"""The axis is logarithmic if the values differ by more than this factor."""
MOST_POINTS = 160
MOST_ROWS = 40
MOST_SINGLE_UNITS = 40
NUM_BINS = 20

_chart_numbers = count()


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Args:
        head: Names of the columns.
        rows: Cells; the first cell of a row is its name.
        words: Indices of the columns of text, aligned left; the others hold numbers.
        chosen: Indices of the rows in bold.
        title: Its title, if it needs one.
    """

    head: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    words: Sequence[int] = (0,)
    chosen: Sequence[int] = ()
    title: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Args:
        title: Its title.
        svg: The drawing.
        numbers: The drawn values as a table.
        legend: (name, CSS colour, dashed) of each line, if there are several.
        note: A remark under the title.
    """

    title: str
    svg: Markup
    numbers: Table
    legend: Sequence[tuple[str, str, bool]] = ()
    note: str | None = None


class Series(NamedTuple):
    """One line of a chart.

    Args:
        label: Its name in the legend.
        points: (x, y), ascending in x, all finite.
        style: Index of its colour; past the last colour they repeat, dashed.
        with_range: Shade the range of the points that one drawn point averages.
    """

    label: str
    points: Sequence[Point]
    style: int = 0
    with_range: bool = False


def line_chart(
    title: str,
    y_label: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    shares: bool = False,
    spot: tuple[Point, str] | None = None,
    note: str | None = None,
) -> Chart | None:
    """Draw lines over a common axis.

    Args:
        title: The chart's title.
        y_label: Name of the values, or their unit.
        series: The lines; those without points are left out.
        x_label: Name of the horizontal axis.
        shares: The values are shares: in percent, on an axis that begins at zero.
        spot: A point to mark, such as the best, and its name.
        note: A remark.

    Returns:
        The chart, or None if no line has a point.
    """
    shown = [one for one in series if one.points]
    if not shown:
        return None
    with _new_figure(SIZE) as (figure, axes):
        # The scale follows the averaged points: single outliers would flatten the lines.
        values = [y for one in shown for y in _plot(axes, one)]
        _scale(axes, values if spot is None else [*values, spot[0][1]], from_zero=shares)
        if spot is not None:
            _mark(axes, *spot)
        axes.set_xlabel(x_label)
        axes.set_title(y_label, loc="left")
        axes.grid(axis="y", color=LINE)
        if shares:
            axes.yaxis.set_major_formatter(_percent)
        svg = _svg(figure, f"Line chart: {title}, over {x_label}. {_ends(shown)}.")
    legend = [
        (one.label, f"var(--s{one.style % len(LINES)})", one.style >= len(LINES)) for one in shown
    ]
    return Chart(title, svg, _numbers(shown, x_label), legend if len(shown) > 1 else (), note)


def keep_probability_map(plan: PruningPlan, kind: UnitKind) -> Chart:
    """Draw the keep-probabilities of one kind of unit, layer by layer.

    If a layer has few units, each is a cell; if it has many, the chart shows their distribution.
    """
    probabilities = by_layer(plan, kind, plan.keep_probabilities_U)
    most = max(s_N.numel() for s_N in probabilities.values())
    single = most <= MOST_SINGLE_UNITS
    height = 1.1 + (min(0.22 * most, 2.6) if single else 2.0)
    with _new_figure((SIZE[0], height)) as (figure, axes):
        if single:
            _draw_units(axes, plan, kind, most)
        else:
            _draw_distribution(axes, plan, kind)
        _layer_axis(axes, plan.space.num_layers)
        name = KIND_NAMES[kind]
        where = f"each of {plan.space.num_layers} layers"
        svg = _svg(figure, f"Heat map: keep-probabilities of the {name} in {where}.")
    note = "A dot: the mask keeps it." if single else None
    return Chart(f"Keep-probabilities: {name}", svg, _probability_table(plan, kind), note=note)


def sparsity_chart(plan: PruningPlan, kind: UnitKind, before: PruningPlan | None) -> Chart:
    """Draw the share of one kind that the mask removes in each layer (paper, Fig. 6).

    Args:
        plan: The plan.
        kind: The kind of unit.
        before: The untrained plan to compare with, drawn as strokes.
    """
    removed = removed_by_layer(plan, kind)
    earlier = {} if before is None else removed_by_layer(before, kind)
    with _new_figure(SIZE) as (figure, axes):
        axes.bar(list(removed), list(removed.values()), width=0.72, color=LINES[0])
        for layer, share in earlier.items():
            axes.plot([layer - 0.45, layer + 0.45], [share, share], color=INK, linewidth=1.6)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(_percent)
        axes.grid(axis="y", color=LINE)
        axes.set_title("removed", loc="left")
        _layer_axis(axes, plan.space.num_layers)
        least, most = share_text(min(removed.values())), share_text(max(removed.values()))
        what = f"share of the {KIND_NAMES[kind]} removed in each of {len(removed)} layers"
        svg = _svg(figure, f"Bar chart: {what}, least {least}, most {most}.")
    columns = [removed, earlier] if earlier else [removed]
    rows = [[str(layer), *(share_text(one.get(layer)) for one in columns)] for layer in removed]
    numbers = Table(["layer", "removed", "untrained"][: 1 + len(columns)], rows)
    note = "Strokes: the untrained mask." if earlier else None
    return Chart(f"Sparsity by layer: {KIND_NAMES[kind]}", svg, numbers, note=note)


def by_layer(plan: PruningPlan, kind: UnitKind, values_U: Tensor) -> dict[int, Tensor]:
    """The part (N,) of a vector (U,) that belongs to each layer with units of a kind."""
    return {
        group.layer: values_U[group.start : group.end]
        for group in plan.space.groups
        if group.kind == kind
    }


def removed_by_layer(plan: PruningPlan, kind: UnitKind) -> dict[int, float]:
    """The share of a kind that the mask removes in each layer, in [0, 1]."""
    kept = by_layer(plan, kind, plan.mask_U)
    return {layer: 1 - float(mask_N.double().mean()) for layer, mask_N in kept.items()}


def averaged(points: Sequence[Point], limit: int) -> list[tuple[float, float, float, float]]:
    """Average neighbouring points, so that at most `limit` remain.

    Args:
        points: (x, y), ascending in x.
        limit: Greatest number of points, at least 1.

    Returns:
        Mean x, mean y, least y and greatest y of equally many points each, the last of fewer.
    """
    size = -(-len(points) // limit)
    buckets = []
    for start in range(0, len(points), size):
        xs, ys = zip(*points[start : start + size], strict=True)
        buckets.append((sum(xs) / len(xs), sum(ys) / len(ys), min(ys), max(ys)))
    return buckets


def _ends(shown: list[Series]) -> str:
    return "; ".join(
        f"{one.label} from {plain_text(one.points[0][1])} to {plain_text(one.points[-1][1])}"
        for one in shown
    )


def _numbers(shown: list[Series], x_label: str) -> Table:
    """The values of the lines at up to MOST_ROWS places, the first and the last among them."""
    xs = sorted({x for one in shown for x, _ in one.points})
    if len(xs) > MOST_ROWS:
        last = len(xs) - 1
        xs = [xs[round(row * last / (MOST_ROWS - 1))] for row in range(MOST_ROWS)]
    values = [dict(one.points) for one in shown]
    rows = [[plain_text(x), *(plain_text(value.get(x)) for value in values)] for x in xs]
    return Table([x_label, *(one.label for one in shown)], rows)


def _plot(axes: Axes, series: Series) -> tuple[float, ...]:
    """Draw a line and return its values."""
    xs, ys, lows, highs = zip(*averaged(series.points, MOST_POINTS), strict=True)
    colour = LINES[series.style % len(LINES)]
    if series.with_range and len(xs) < len(series.points):
        axes.fill_between(xs, lows, highs, color=colour, alpha=0.18, linewidth=0)
    form: dict[str, Any] = {
        "linestyle": (0, (5, 3)) if series.style >= len(LINES) else "-",
        "marker": "o" if len(xs) == 1 else "",
    }
    axes.plot(xs, ys, color=colour, linewidth=1.7, markersize=4, **form)
    return ys


def _scale(axes: Axes, values: Sequence[float], *, from_zero: bool) -> None:
    """Show all values, on a logarithmic axis if they differ by a large factor."""
    low, high = min(values), max(values)
    if from_zero:
        axes.set_ylim(0.0, high if high > 0 else 1.0)
    elif low > 0 and high / low > LOGARITHMIC_FROM:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.set_yscale("log")
        axes.set_ylim(low / 1.1, high * 1.1)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        axes.yaxis.set_major_formatter(lambda value, _: plain_text(float(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        margin = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
        axes.set_ylim(low - margin, high + margin)


def _mark(axes: Axes, point: Point, name: str) -> None:
    """Mark a point, with its name on the side that has room."""
    x, y = axes.transAxes.inverted().transform(axes.transData.transform(point))
    axes.plot(*point, "o", color=LINES[1], markeredgecolor=PAPER, markersize=7, clip_on=False)
    axes.annotate(
        name,
        point,
        xytext=(-5 if x > 0.5 else 5, -14 if y > 0.8 else 7),
        textcoords="offset points",
        ha="right" if x > 0.5 else "left",
        color=INK,
        weight="bold",
    )


def _draw_units(axes: Axes, plan: PruningPlan, kind: UnitKind, most: int) -> None:
    """A row for each unit, a column for each layer, a dot in each unit that the mask keeps."""
    cells = torch.full((most, plan.space.num_layers), torch.nan, dtype=torch.float64)
    for layer, s_N in by_layer(plan, kind, plan.keep_probabilities_U).items():
        cells[: len(s_N), layer] = s_N
    for layer, mask_N in by_layer(plan, kind, plan.mask_U).items():
        kept = mask_N.nonzero().flatten().tolist()
        dots: dict[str, Any] = {"markersize": 4, "markeredgecolor": INK, "markeredgewidth": 0.7}
        axes.plot([layer] * len(kept), kept, "o", color=PAPER, **dots)
    _draw_cells(axes, cells, (-0.5, most - 0.5), ("0", "0.5", "1"), "keep-probability")
    axes.invert_yaxis()
    axes.set_title("unit", loc="left")


def _draw_distribution(axes: Axes, plan: PruningPlan, kind: UnitKind) -> None:
    """A row for each twentieth of [0, 1], a column for each layer, coloured by share of units."""
    shares = torch.full((NUM_BINS, plan.space.num_layers), torch.nan, dtype=torch.float64)
    for layer, s_N in by_layer(plan, kind, plan.keep_probabilities_U).items():
        shares[:, layer] = torch.histc(s_N, NUM_BINS, 0.0, 1.0) / s_N.numel()
    greatest = float(shares.nan_to_num().max())
    # Square roots keep a few per cent visible beside a bin that holds most of the units.
    labels = ("0 %", share_text(greatest / 4, 0), share_text(greatest, 0))
    _draw_cells(axes, (shares / greatest).sqrt(), (0.0, 1.0), labels, "share of the layer")
    axes.set_title("keep-probability", loc="left")


def _draw_cells(
    axes: Axes, values: Tensor, rows: tuple[float, float], labels: Sequence[str], name: str
) -> None:
    """Draw values in [0, 1] as colours, with a colour bar; NaN leaves a cell empty."""
    from matplotlib.colors import ListedColormap

    x = torch.arange(values.shape[1] + 1) - 0.5
    y = torch.linspace(*rows, values.shape[0] + 1)
    cells: dict[str, Any] = {"cmap": ListedColormap(HEAT), "edgecolors": "face", "linewidth": 0.3}
    mesh = axes.pcolormesh(x.numpy(), y.numpy(), values.numpy(), vmin=0.0, vmax=1.0, **cells)
    figure: Any = axes.figure
    bar = figure.colorbar(mesh, ax=axes, ticks=[0, 0.5, 1], pad=0.02, aspect=30)
    bar.solids.set_rasterized(False)
    bar.ax.set_yticklabels(labels)
    bar.outline.set_visible(False)
    bar.set_label(name, color=SOFT)


def _probability_table(plan: PruningPlan, kind: UnitKind) -> Table:
    kept = by_layer(plan, kind, plan.mask_U)
    rows = []
    for layer, s_N in by_layer(plan, kind, plan.keep_probabilities_U).items():
        values = (s_N.mean(), s_N.min(), s_N.quantile(0.5), s_N.max())
        number = f"{int(kept[layer].sum()):,} of {s_N.numel():,}"
        rows.append([str(layer), number, *(f"{float(value):.3f}" for value in values)])
    return Table(["layer", "kept", "mean", "least", "median", "greatest"], rows)


def _layer_axis(axes: Axes, num_layers: int) -> None:
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if num_layers / step <= 16)
    axes.set_xticks(range(0, num_layers, every))
    axes.set_xlim(-0.5, num_layers - 0.5)
    axes.set_xlabel("layer")


def _percent(value: float, _: object) -> str:
    return f"{100 * value:.3g} %"


@contextmanager
def _new_figure(size: tuple[float, float]) -> Iterator[tuple[Figure, Axes]]:
    import matplotlib as mpl
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and may want a display

    soft = ("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor")
    off = ("axes.spines.top", "axes.spines.right", "axes.spines.left", "axes.formatter.useoffset")
    style: Any = {
        "svg.fonttype": "none",  # text stays text, in the page's font
        "svg.hashsalt": "pgprune",  # equal charts are equal text
        "text.parse_math": False,  # names of runs and models may hold dollar signs
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.axisbelow": True,
        **dict.fromkeys((*soft, "xtick.color", "ytick.color"), SOFT),
        **dict.fromkeys(off, False),
        **dict.fromkeys(("ytick.major.size", "ytick.minor.size"), 0),
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots()


def _svg(figure: Figure, description: str) -> Markup:
    """The figure as an element of a page, in the page's colours, with ids of its own."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)  # the style sheet sets them
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>c{next(_chart_numbers)}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    label = f'<svg class="chart" role="img" aria-label="{escape(description)}"'
    return Markup(text.replace("<svg", label, 1))
