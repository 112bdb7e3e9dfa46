"""What charts share: their size, axes, legend and the figure around them."""

from __future__ import annotations

from collections.abc import Sequence

from pgprune_lightning.number_text import plain_text
from pgprune_lightning.reporting.markup import Markup, element, joined
from pgprune_lightning.reporting.scale import Scale
from pgprune_lightning.reporting.style import NUM_LINE_STYLES

WIDTH = 400.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 8.0, 24.0, 34.0
"""Margins around the plotted area, in the pixels of the drawing."""
RIGHT_EDGE = WIDTH - RIGHT


def drawing(height: float, label: str, *parts: str | None) -> Markup:
    """A chart that scales with its column.

    Args:
        height: In pixels, where the width is `WIDTH`.
        label: What a screen reader says.
        parts: What is drawn.
    """
    return element(
        "svg",
        *parts,
        class_="chart",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        role="img",
        aria_label=label,
        xmlns="http://www.w3.org/2000/svg",
    )


def text(
    x: float, y: float, content: str, anchor: str = "middle", class_: str | None = None
) -> Markup:
    """Words in a drawing; `anchor` is `start`, `middle` or `end`."""
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def value_axis(scale: Scale, label: str, *, percent: bool = False) -> Markup:
    """Ticks on the left with lines across, and what they count, above."""
    parts = [text(2.0, 9.0, label, "start")]
    for value in scale.ticks():
        y = scale(value)
        name = f"{100 * value:.3g} %" if percent else plain_text(float(value))
        parts += [
            line(LEFT, y, RIGHT_EDGE, y, "grid"),
            text(LEFT - 5, y + 4, name, "end"),
        ]
    return joined(*parts)


def step_axis(scale: Scale, bottom: float, label: str) -> Markup:
    """Ticks along the bottom."""
    parts = [line(LEFT, bottom, RIGHT_EDGE, bottom, "axis")]
    for value in scale.ticks():
        name, x = plain_text(float(value)), scale(value)
        at_end = x + 4 * len(name) > WIDTH
        parts.append(
            text(
                min(x + 4, WIDTH) if at_end else x, bottom + 15, name, "end" if at_end else "middle"
            )
        )
    parts.append(text((LEFT + RIGHT_EDGE) / 2, bottom + 30, label))
    return joined(*parts)


def layer_axis(num_layers: int, bottom: float, label: str = "layer") -> Markup:
    """Numbers of layers in the middle of their columns, as many as there is room for."""
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100) if num_layers / step <= 16)
    width = layer_width(num_layers)
    parts = [
        text(LEFT + (layer + 0.5) * width, bottom + 14, str(layer))
        for layer in range(0, num_layers, every)
    ]
    return joined(*parts, text((LEFT + RIGHT_EDGE) / 2, bottom + 29, label))


def layer_width(num_layers: int) -> float:
    """Width of a layer's column, in pixels."""
    return (RIGHT_EDGE - LEFT) / num_layers


def style_classes(style: int, prefix: str = "s") -> str:
    """The classes of a line's colour; from the second round on, dashed."""
    dashed = " dashed" if style >= NUM_LINE_STYLES else ""
    return f"{prefix}{style % NUM_LINE_STYLES}{dashed}"


def legend(entries: Sequence[tuple[str, int]]) -> Markup | None:
    """Names beside their lines; nothing where there is only one."""
    if len(entries) < 2:
        return None
    items = []
    for name, style in entries:
        stroke = line(1.0, 5.0, 21.0, 5.0, f"trace {style_classes(style)}")
        mark = element("svg", stroke, viewBox="0 0 22 10", aria_hidden="true")
        items.append(element("li", mark, name))
    return element("ul", *items, class_="legend")


def figure(title: str, *parts: str | None, note: str | None = None) -> Markup:
    """A chart with its title and a remark under it."""
    remark = None if note is None else element("p", note)
    return element("figure", element("figcaption", title), remark, *parts)
