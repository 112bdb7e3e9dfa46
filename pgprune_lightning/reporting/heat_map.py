"""Keep-probabilities over the layers, as heat maps.

Few units a layer are a cell each; many are shown by how they are distributed over [0, 1].

Shapes: N units of one layer and kind.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pgprune_lightning.number_text import share_text
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.policy.mask_space import UnitKind
from pgprune_lightning.reporting.frame import (
    LEFT,
    RIGHT_EDGE,
    TOP,
    drawing,
    figure,
    layer_axis,
    layer_width,
    text,
)
from pgprune_lightning.reporting.kinds import KIND_NAMES, by_layer
from pgprune_lightning.reporting.markup import Markup, element, joined
from pgprune_lightning.reporting.style import HEAT_LEVELS
from pgprune_lightning.reporting.tables import details, table

MOST_SINGLE_UNITS = 40
NUM_BINS = 20
KEY_HEIGHT = 72.0
"""Below the cells: the layers' numbers and what the colours mean."""
SMALLEST_DOT = 7.0
"""In cells narrower than this, in pixels, the dots of kept units would run together."""


def keep_probability_map(plan: PruningPlan, kind: UnitKind, *, brief: bool = False) -> Markup:
    """Keep-probabilities of a kind of unit, layer by layer.

    Args:
        plan: The plan.
        kind: The kind of unit.
        brief: Without what the cells say under the pointer, which is half of the size.
    """
    probabilities = by_layer(plan, kind, plan.keep_probabilities_U)
    most = max(s_N.numel() for s_N in probabilities.values())
    numbers = details("Numbers", _numbers(plan, kind))
    if most <= MOST_SINGLE_UNITS:
        drawn = _cells(plan, kind, most, brief)
        dots = "A dot: the mask keeps it." if _has_dots(plan, most) else None
        return figure(f"Keep-probabilities: {KIND_NAMES[kind]}", drawn, numbers, note=dots)
    drawn = _distribution(plan, kind, brief)
    return figure(f"Keep-probabilities: {KIND_NAMES[kind]}", drawn, numbers)


def _cells(plan: PruningPlan, kind: UnitKind, most: int, brief: bool) -> Markup:
    """A row a unit, a column a layer."""
    width, height = layer_width(plan.space.num_layers), _cell_height(most)
    kept = by_layer(plan, kind, plan.mask_U)
    parts = []
    for layer, s_N in by_layer(plan, kind, plan.keep_probabilities_U).items():
        x = LEFT + layer * width
        for unit, (s, is_kept) in enumerate(zip(s_N.tolist(), kept[layer].tolist(), strict=True)):
            said = f"layer {layer}, unit {unit}: {s:.3f}, {'kept' if is_kept else 'removed'}"
            y = TOP + unit * height
            parts.append(_cell(x, y, width, height, s, None if brief else said))
            if is_kept and _has_dots(plan, most):
                parts.append(
                    element("circle", cx=x + width / 2, cy=y + height / 2, r=2, class_="kept")
                )
    every = next(step for step in (1, 2, 5, 10) if most / step <= 12)
    rows = [
        text(LEFT - 5, TOP + (unit + 0.5) * height + 4, str(unit), "end")
        for unit in range(0, most, every)
    ]
    bottom = TOP + most * height
    return drawing(
        bottom + KEY_HEIGHT,
        f"Heat map: keep-probabilities of the {KIND_NAMES[kind]}, a column for each of "
        f"{plan.space.num_layers} layers, a row for each unit.",
        text(2.0, 9.0, "unit", "start"),
        *rows,
        *parts,
        layer_axis(plan.space.num_layers, bottom),
        _key(bottom + 50, "keep-probability", ("0", "0.5", "1")),
    )


def _distribution(plan: PruningPlan, kind: UnitKind, brief: bool) -> Markup:
    """A row a twentieth of [0, 1], a column a layer; colours say how many of its units."""
    width, height = layer_width(plan.space.num_layers), 9.0
    shares = {
        layer: (torch.histc(s_N, NUM_BINS, 0.0, 1.0) / s_N.numel()).tolist()
        for layer, s_N in by_layer(plan, kind, plan.keep_probabilities_U).items()
    }
    greatest = max(max(column) for column in shares.values())
    parts = []
    for layer, column in shares.items():
        for number, share in enumerate(column):
            if share == 0:
                continue
            low, high = number / NUM_BINS, (number + 1) / NUM_BINS
            said = f"layer {layer}: {share_text(share)} between {low:g} and {high:g}"
            y = TOP + (NUM_BINS - 1 - number) * height
            # By the root, or a few per cent would look like none beside a bin that holds most.
            level = (share / greatest) ** 0.5
            x, words = LEFT + layer * width, None if brief else said
            parts.append(_cell(x, y, width, height, level, words))
    bottom = TOP + NUM_BINS * height
    ticks = [
        text(LEFT - 5, bottom - s * (bottom - TOP) + 4, f"{s:g}", "end")
        for s in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return drawing(
        bottom + KEY_HEIGHT,
        f"Heat map: how the keep-probabilities of the {KIND_NAMES[kind]} are distributed in each "
        f"of {plan.space.num_layers} layers.",
        text(2.0, 9.0, "keep-probability", "start"),
        *ticks,
        element("rect", x=LEFT, y=TOP, width=RIGHT_EDGE - LEFT, height=bottom - TOP, class_="h0"),
        *parts,
        layer_axis(plan.space.num_layers, bottom),
        _key(
            bottom + 50,
            "share of the layer",
            ("0 %", share_text(greatest / 4, 0), share_text(greatest, 0)),
        ),
    )


def _cell(
    x: float, y: float, width: float, height: float, value: float, said: str | None
) -> Markup:
    # A little wider than its place, or hairlines of the page shine through.
    return element(
        "rect",
        None if said is None else element("title", said),
        x=x,
        y=y,
        width=width + 0.3,
        height=height + 0.3,
        class_=f"cell h{round(value * (HEAT_LEVELS - 1))}",
    )


def _key(y: float, name: str, labels: Sequence[str]) -> Markup:
    """What the colours mean: a strip from the least to the greatest."""
    width, left = 11.0, LEFT + 130.0
    strip = [
        element(
            "rect", x=left + level * width, y=y - 6, width=width + 0.3, height=9, class_=f"h{level}"
        )
        for level in range(HEAT_LEVELS)
    ]
    low, middle, high = labels
    right = left + HEAT_LEVELS * width
    return joined(
        text(left - 36, y + 2, name, "end"),
        text(left - 4, y + 2, low, "end"),
        *strip,
        text((left + right) / 2, y + 15, middle),
        text(right + 4, y + 2, high, "start"),
    )


def _numbers(plan: PruningPlan, kind: UnitKind) -> Markup:
    kept = by_layer(plan, kind, plan.mask_U)
    rows = []
    for layer, s_N in by_layer(plan, kind, plan.keep_probabilities_U).items():
        low, middle, high = (float(s_N.quantile(q)) for q in (0.0, 0.5, 1.0))
        values = (float(s_N.mean()), low, middle, high)
        count = f"{int(kept[layer].sum()):,} of {s_N.numel():,}"
        rows.append([str(layer), count, *(f"{value:.3f}" for value in values)])
    return table(["layer", "kept", "mean", "least", "median", "greatest"], rows)


def _cell_height(most: int) -> float:
    return min(18.0, max(5.0, 200.0 / most))


def _has_dots(plan: PruningPlan, most: int) -> bool:
    return min(layer_width(plan.space.num_layers), _cell_height(most)) >= SMALLEST_DOT
