"""Sparsity by layer, as bars (paper, Fig. 6)."""

from __future__ import annotations

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
    line,
    value_axis,
)
from pgprune_lightning.reporting.kinds import KIND_NAMES, removed_by_layer
from pgprune_lightning.reporting.markup import Markup, element, joined
from pgprune_lightning.reporting.scale import Scale
from pgprune_lightning.reporting.tables import details, table

BASE = 164.0
HEIGHT = 198.0


def sparsity_chart(plan: PruningPlan, kind: UnitKind, before: PruningPlan | None) -> Markup:
    """The share of a kind that the mask removes in each layer.

    Args:
        plan: The plan.
        kind: The kind of unit.
        before: A plan that is shown by strokes, such as the untrained one.
    """
    removed = removed_by_layer(plan, kind)
    earlier = {} if before is None else removed_by_layer(before, kind)
    scale = Scale(0.0, 1.0, BASE, TOP)
    num_layers = plan.space.num_layers
    drawn = drawing(
        HEIGHT,
        f"Bar chart: share of the {KIND_NAMES[kind]} removed in each of {len(removed)} layers, "
        f"least {share_text(min(removed.values()))}, most {share_text(max(removed.values()))}.",
        value_axis(scale, "removed", percent=True),
        *(
            _column(layer, share, earlier.get(layer), scale, layer_width(num_layers))
            for layer, share in removed.items()
        ),
        line(LEFT, BASE, RIGHT_EDGE, BASE, "axis"),
        layer_axis(num_layers, BASE),
    )
    return figure(
        f"Sparsity by layer: {KIND_NAMES[kind]}",
        drawn,
        _numbers(removed, earlier),
        note="Strokes: the untrained mask." if earlier else None,
    )


def _column(layer: int, share: float, earlier: float | None, scale: Scale, width: float) -> Markup:
    x = LEFT + layer * width
    said = f"layer {layer}: {share_text(share)} removed"
    stroke = None
    if earlier is not None:
        said += f", {share_text(earlier)} untrained"
        stroke = line(x + 0.05 * width, scale(earlier), x + 0.95 * width, scale(earlier), "before")
    bar = element(
        "rect",
        x=x + 0.14 * width,
        y=scale(share),
        width=0.72 * width,
        height=BASE - scale(share),
        class_="f0",
    )
    touch = element(
        "rect",
        element("title", said),
        x=x,
        y=TOP,
        width=width,
        height=BASE - TOP,
        class_="touch",
    )
    return joined(bar, stroke, touch)


def _numbers(removed: dict[int, float], earlier: dict[int, float]) -> Markup:
    head = ["layer", "removed", *(["untrained"] if earlier else [])]
    rows = [
        [str(layer), share_text(share), *([share_text(earlier.get(layer))] if earlier else [])]
        for layer, share in removed.items()
    ]
    return details("Numbers", table(head, rows))
