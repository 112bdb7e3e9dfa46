"""Charts of a report, as SVG inside the page, by matplotlib.

matplotlib writes the light theme's colours. The page's style sheet has each of them as a variable,
so `_svg` puts the variables in their place, and charts follow the reader's theme.

Shapes: U units, N units of one layer and kind.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from markupsafe import Markup, escape
from torch import Tensor

from pgprune_lightning.number_text import plain_text, share_text
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.policy.unit_layout import UnitKind

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
"""Colours of the light theme, and what templates/style.css calls them."""

KIND_NAMES: dict[UnitKind, str] = {
    "kv_group": "KV groups",
    "mlp_channel": "MLP channels",
    "attention": "attention sub-layers",
    "mlp": "MLPs",
    "layer": "whole layers",
}

SIZE = (5.2, 3.0)
"""Width and height of a chart, in inches; the page scales it to its column."""
LOGARITHMIC_FROM = 8.0
"""A logarithmic axis shows more than a linear one where values differ by more than this factor."""
MOST_POINTS = 160
MOST_ROWS = 40
MOST_SINGLE_UNITS = 40
NUM_BINS = 20

_numbers_of_charts = count()


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Args:
        head: Names of the columns.
        rows: Cells; the first of a row names it.
        words: Columns of text, which are aligned left; the others hold numbers.
        chosen: Rows to stress.
    """

    head: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    words: Sequence[int] = (0,)
    chosen: Sequence[int] = ()


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Args:
        title: What is shown.
        svg: The drawing.
        numbers: What is drawn, as a table.
        legend: (name, CSS colour, dashed) of each line, where there are several.
        note: A remark.
    """

    title: str
    svg: Markup
    numbers: Table
    legend: Sequence[tuple[str, str, bool]] = ()
    note: str | None = None


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        label: Its name in the legend.
        points: (x, y), ascending in x, all finite.
        style: Its colour, from 0; above the number of colours they repeat, dashed.
        with_range: Show the range of the points that were averaged behind the line.
    """

    label: str
    points: Sequence[Point]
    style: int = 0
    with_range: bool = False

    @property
    def colour(self) -> str:
        """The line's colour in the light theme."""
        return LINES[self.style % len(LINES)]

    @property
    def is_dashed(self) -> bool:
        """Whether the colours have repeated."""
        return self.style >= len(LINES)


@dataclass(frozen=True)
class LineChart:
    """Some series over one axis.

    Args:
        title: What is shown.
        y_label: What the values are, with their unit.
        series: Empty ones are left out.
        x_label: What is along the bottom.
        percent: Values are shares.
        from_zero: The axis begins at zero.
        spots: Single points with a name, such as the best.
        note: A remark.
    """

    title: str
    y_label: str
    series: Sequence[Series]
    x_label: str = "step"
    percent: bool = False
    from_zero: bool = False
    spots: Sequence[tuple[Point, str, int]] = field(default=())
    note: str | None = None

    def draw(self) -> Chart | None:
        """Draw it; None without any point."""
        shown = [series for series in self.series if series.points]
        if not shown:
            return None
        with _new_figure(SIZE) as (figure, axes):
            # Scaled by the means of averaged points: single wild steps would flatten the lines.
            values = [y for (_, y), _, _ in self.spots]
            for series in shown:
                values += _plot(axes, series)
            _scale(axes, values, from_zero=self.from_zero)
            for (x, y), name, style in self.spots:
                _spot(axes, x, y, name, LINES[style])
            axes.set_xlabel(self.x_label)
            axes.set_title(self.y_label, loc="left")
            if self.percent:
                axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
            axes.grid(axis="y", color=LINE)
            svg = _svg(figure, self._description(shown))
        legend = []
        if len(shown) > 1:
            legend = [(s.label, f"var({VARIABLES[s.colour]})", s.is_dashed) for s in shown]
        return Chart(self.title, svg, self._numbers(shown), legend, self.note)

    def _description(self, shown: list[Series]) -> str:
        ends = "; ".join(
            f"{series.label} from {plain_text(series.points[0][1])} "
            f"to {plain_text(series.points[-1][1])}"
            for series in shown
        )
        return f"Line chart: {self.title}, over {self.x_label}. {ends}."

    def _numbers(self, shown: list[Series]) -> Table:
        xs = _some_of(sorted({x for series in shown for x, _ in series.points}), MOST_ROWS)
        at = [dict(series.points) for series in shown]
        rows = [[plain_text(x), *(plain_text(values.get(x)) for values in at)] for x in xs]
        return Table([self.x_label, *(series.label for series in shown)], rows)


def averaged(points: Sequence[Point], limit: int) -> list[tuple[float, float, float, float]]:
    """Average neighbouring points, so that at most `limit` remain.

    Args:
        points: (x, y), ascending in x.
        limit: Greatest number of points, at least 1.

    Returns:
        Mean x, mean y, least y and greatest y of equally many points each, the last of fewer.
    """
    size = max(1, -(-len(points) // limit))
    buckets = []
    for start in range(0, len(points), size):
        xs, ys = zip(*points[start : start + size], strict=True)
        buckets.append((sum(xs) / len(xs), sum(ys) / len(ys), min(ys), max(ys)))
    return buckets


def keep_probability_map(plan: PruningPlan, kind: UnitKind) -> Chart:
    """Keep-probabilities of a kind of unit, layer by layer.

    Few units a layer are a cell each; of many, the distribution over [0, 1] is shown.

    Args:
        plan: The plan.
        kind: The kind of unit.
    """
    probabilities = by_layer(plan, kind, plan.keep_probabilities_U)
    most = max(s_N.numel() for s_N in probabilities.values())
    single = most <= MOST_SINGLE_UNITS
    height = 1.1 + (min(0.22, 2.6 / most) * most if single else 2.0)
    with _new_figure((SIZE[0], height)) as (figure, axes):
        (_draw_units if single else _draw_distribution)(axes, plan, kind, most)
        _layer_axis(axes, plan.space.num_layers)
        svg = _svg(
            figure,
            f"Heat map: keep-probabilities of the {KIND_NAMES[kind]} in each of "
            f"{plan.space.num_layers} layers.",
        )
    note = "A dot: the mask keeps it." if single else None
    title = f"Keep-probabilities: {KIND_NAMES[kind]}"
    return Chart(title, svg, _probability_table(plan, kind), note=note)


def sparsity_chart(plan: PruningPlan, kind: UnitKind, before: PruningPlan | None) -> Chart:
    """The share of a kind that the mask removes in each layer (paper, Fig. 6).

    Args:
        plan: The plan.
        kind: The kind of unit.
        before: A plan to compare with, such as the untrained one, shown by strokes.
    """
    removed = removed_by_layer(plan, kind)
    earlier = {} if before is None else removed_by_layer(before, kind)
    with _new_figure(SIZE) as (figure, axes):
        axes.bar(list(removed), list(removed.values()), width=0.72, color=LINES[0])
        for layer, share in earlier.items():
            axes.plot([layer - 0.45, layer + 0.45], [share, share], color=INK, linewidth=1.6)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        axes.grid(axis="y", color=LINE)
        axes.set_title("removed", loc="left")
        _layer_axis(axes, plan.space.num_layers)
        svg = _svg(
            figure,
            f"Bar chart: share of the {KIND_NAMES[kind]} removed in each of {len(removed)} layers, "
            f"least {share_text(min(removed.values()))}, most {share_text(max(removed.values()))}.",
        )
    head = ["layer", "removed", *(["untrained"] if earlier else [])]
    rows = [
        [str(layer), share_text(share), *([share_text(earlier.get(layer))] if earlier else [])]
        for layer, share in removed.items()
    ]
    note = "Strokes: the untrained mask." if earlier else None
    return Chart(f"Sparsity by layer: {KIND_NAMES[kind]}", svg, Table(head, rows), note=note)


def by_layer(plan: PruningPlan, kind: UnitKind, values_U: Tensor) -> dict[int, Tensor]:
    """The part of a vector (U,) that belongs to each layer with units of a kind."""
    return {
        group.layer: values_U[group.start : group.end]
        for group in plan.space.groups
        if group.kind == kind
    }


def removed_by_layer(plan: PruningPlan, kind: UnitKind) -> dict[int, float]:
    """The share of a kind that the mask removes in each layer, in [0, 1]."""
    kept = by_layer(plan, kind, plan.mask_U)
    return {layer: 1 - float(mask_N.double().mean()) for layer, mask_N in kept.items()}


def _draw_units(axes: Axes, plan: PruningPlan, kind: UnitKind, most: int) -> None:
    """A row a unit, a column a layer, and a dot in each unit that the mask keeps."""
    cells = torch.full((most, plan.space.num_layers), torch.nan, dtype=torch.float64)
    kept = by_layer(plan, kind, plan.mask_U)
    for layer, s_N in by_layer(plan, kind, plan.keep_probabilities_U).items():
        cells[: len(s_N), layer] = s_N
        units = kept[layer].nonzero().flatten().tolist()
        dots: dict[str, Any] = {
            "color": PAPER,
            "markersize": 4,
            "markeredgecolor": INK,
            "markeredgewidth": 0.7,
        }
        axes.plot([layer] * len(units), units, "o", **dots)
    _draw_cells(axes, cells, (-0.5, most - 0.5), ("0", "0.5", "1"), "keep-probability")
    axes.invert_yaxis()
    axes.set_title("unit", loc="left")


def _draw_distribution(axes: Axes, plan: PruningPlan, kind: UnitKind, most: int) -> None:
    """A row a twentieth of [0, 1], a column a layer; the colour is the share of its units."""
    del most
    shares = torch.full((NUM_BINS, plan.space.num_layers), torch.nan, dtype=torch.float64)
    for layer, s_N in by_layer(plan, kind, plan.keep_probabilities_U).items():
        shares[:, layer] = torch.histc(s_N, NUM_BINS, 0.0, 1.0) / s_N.numel()
    greatest = float(shares.nan_to_num().max())
    # By the root, or a few per cent would look like none beside a bin that holds most.
    labels = ("0 %", share_text(greatest / 4, 0), share_text(greatest, 0))
    _draw_cells(axes, (shares / greatest).sqrt(), (0.0, 1.0), labels, "share of the layer")
    axes.set_title("keep-probability", loc="left")


def _draw_cells(
    axes: Axes, values: Tensor, rows: tuple[float, float], labels: Sequence[str], name: str
) -> None:
    """Values in [0, 1] as colours, with the colours' key; cells of NaN stay empty."""
    from matplotlib.colors import ListedColormap

    num_rows, num_layers = values.shape
    x = torch.arange(num_layers + 1) - 0.5
    y = torch.linspace(*rows, num_rows + 1)
    mesh = axes.pcolormesh(
        x.numpy(),
        y.numpy(),
        values.numpy(),
        cmap=ListedColormap(HEAT),
        vmin=0.0,
        vmax=1.0,
        edgecolors="face",
        linewidth=0.3,
    )
    figure: Any = axes.figure
    key = figure.colorbar(mesh, ax=axes, ticks=[0, 0.5, 1], pad=0.02, aspect=30)
    key.solids.set_rasterized(False)
    key.ax.set_yticklabels(labels)
    key.outline.set_visible(False)
    key.set_label(name, color=SOFT)


def _probability_table(plan: PruningPlan, kind: UnitKind) -> Table:
    kept = by_layer(plan, kind, plan.mask_U)
    rows = []
    for layer, s_N in by_layer(plan, kind, plan.keep_probabilities_U).items():
        values = [float(s_N.mean()), *(float(s_N.quantile(q)) for q in (0.0, 0.5, 1.0))]
        number = f"{int(kept[layer].sum()):,} of {s_N.numel():,}"
        rows.append([str(layer), number, *(f"{value:.3f}" for value in values)])
    return Table(["layer", "kept", "mean", "least", "median", "greatest"], rows)


def _plot(axes: Axes, series: Series) -> list[float]:
    """Draw a line and return its values."""
    xs, ys, lows, highs = zip(*averaged(series.points, MOST_POINTS), strict=True)
    if series.with_range and len(xs) < len(series.points):
        axes.fill_between(xs, lows, highs, color=series.colour, alpha=0.18, linewidth=0)
    dashes: Any = (0, (5, 3)) if series.is_dashed else "-"
    axes.plot(
        xs,
        ys,
        color=series.colour,
        linestyle=dashes,
        linewidth=1.7,
        marker="o" if len(xs) == 1 else "",
        markersize=4,
    )
    return list(ys)


def _scale(axes: Axes, values: list[float], *, from_zero: bool) -> None:
    """Show all values, on a logarithmic axis where they differ by a large factor."""
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


def _spot(axes: Axes, x: float, y: float, name: str, colour: str) -> None:
    left, right = axes.get_xlim()
    near_right, near_top = (
        x > (left + right) / 2,
        axes.transData.transform((x, y))[1] > 0.8 * (axes.transAxes.transform((0, 1))[1]),
    )
    axes.plot([x], [y], "o", color=colour, markeredgecolor=PAPER, markersize=7, clip_on=False)
    axes.annotate(
        name,
        (x, y),
        xytext=(-5 if near_right else 5, -14 if near_top else 7),
        textcoords="offset points",
        ha="right" if near_right else "left",
        color=INK,
        weight="bold",
    )


def _layer_axis(axes: Axes, num_layers: int) -> None:
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if num_layers / step <= 16)
    axes.set_xticks(range(0, num_layers, every))
    axes.set_xlim(-0.5, num_layers - 0.5)
    axes.set_xlabel("layer")


def _some_of(values: list[float], most: int) -> list[float]:
    """Evenly many of them, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


@contextmanager
def _new_figure(size: tuple[float, float]) -> Iterator[tuple[Figure, Axes]]:
    import matplotlib as mpl
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and may want a display

    style: Any = {
        "svg.fonttype": "none",  # words stay words, in the page's font
        "svg.hashsalt": "pgprune",  # equal charts are equal text
        "text.parse_math": False,  # names of runs and models may hold dollar signs
        "font.size": 9,
        "axes.titlesize": 9,
        "text.color": SOFT,
        **dict.fromkeys(("axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), SOFT),
        "axes.edgecolor": SOFT,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        **dict.fromkeys(("ytick.major.size", "ytick.minor.size"), 0),
        "axes.formatter.useoffset": False,
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
    prefix = f"c{next(_numbers_of_charts)}-"
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    text = re.sub(
        r"#[0-9a-f]{6}\b",
        lambda found: f"var({VARIABLES[found[0]]})" if found[0] in VARIABLES else found[0],
        text,
    )
    start = f'<svg class="chart" role="img" aria-label="{escape(description)}"'
    text = re.sub(r'<svg\b([^>]*?) (?:width|height)="[\d.]+pt"', r"<svg\1", text)
    text = re.sub(r'<svg\b([^>]*?) (?:width|height)="[\d.]+pt"', r"<svg\1", text)
    return Markup(text.replace("<svg", start, 1))
