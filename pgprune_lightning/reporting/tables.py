"""Tables, lists of facts and what folds away."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pgprune_lightning.reporting.markup import Markup, element


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: Collection[int] = (0,),
    chosen: Collection[int] = (),
) -> Markup:
    """A table that scrolls sideways where the screen is narrower.

    Args:
        head: Names of the columns.
        rows: Cells; the first of a row names it.
        words: Columns of text, which stand on the left; the others hold numbers.
        chosen: Rows to stress.
    """
    cells = [
        element("th", name, scope="col", class_=_side(i, words)) for i, name in enumerate(head)
    ]
    body = []
    for index, row in enumerate(rows):
        first, *others = row
        tds = [element("td", cell, class_=_side(i, words)) for i, cell in enumerate(others, 1)]
        heading = element("th", first, scope="row", class_=_side(0, words))
        body.append(element("tr", heading, *tds, class_="chosen" if index in chosen else None))
    whole = element("table", element("thead", element("tr", *cells)), element("tbody", *body))
    # With the keyboard, only what can have the focus can be scrolled.
    return element("div", whole, class_="scroll", tabindex=0)


def facts(pairs: Sequence[tuple[str, str | None]]) -> Markup:
    """What is what; pairs without a value are left out."""
    items = []
    for name, value in pairs:
        if value:
            items += [element("dt", name), element("dd", value)]
    return element("dl", *items)


def tiles(pairs: Sequence[tuple[str, str]]) -> Markup:
    """The few numbers that a reader looks for first: (number, what it is)."""
    boxes = [
        element("div", element("b", value), element("span", name), class_="tile")
        for value, name in pairs
    ]
    return element("div", *boxes, class_="tiles")


def details(title: str, *content: str | None) -> Markup:
    """Content that unfolds under its title."""
    return element("details", element("summary", title), *content)


def notes(title: str, items: Sequence[str]) -> Markup | None:
    """What a reader must know before trusting the numbers; None where there is nothing."""
    if not items:
        return None
    listed = element("ul", *(element("li", item) for item in items))
    return element("div", element("strong", title), listed, class_="notes", role="note")


def _side(column: int, words: Collection[int]) -> str | None:
    return None if column in words else "number"
