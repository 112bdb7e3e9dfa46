"""HTML and SVG from plain calls: whatever text goes into an element is escaped on its way.

Names of models, texts and options come from files of others, and a sample of text from a model:
any of them may hold `<script>`.
"""

from __future__ import annotations

import html
import math

VOID_TAGS = frozenset({"br", "meta"})


class Markup(str):
    """Text that is markup already; only `element` and `joined` make it, and constants."""

    __slots__ = ()


def element(tag: str, *children: str | None, **attributes: str | float | None) -> Markup:
    """Make an element.

    Args:
        tag: Its name.
        children: What it holds: markup as it is, other text escaped; None is left out.
        attributes: `class_` becomes `class`, other underscores become hyphens; None is left out.
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(_value(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in VOID_TAGS:
        return Markup(f"<{tag}{given}>")
    return Markup(f"<{tag}{given}>{joined(*children)}</{tag}>")


def joined(*children: str | None) -> Markup:
    """Markup side by side; other text is escaped, None is left out."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else html.escape(child)
            for child in children
            if child is not None
        )
    )


def _value(value: str | float) -> str:
    """Coordinates to a tenth of a pixel, which is finer than screens are."""
    if isinstance(value, float):
        assert math.isfinite(value), value
        return f"{value:.1f}".rstrip("0").rstrip(".")
    return str(value)
