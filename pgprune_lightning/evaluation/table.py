"""A table for a terminal, as Markdown and as CSV, and the values that tables show."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich import table as rich_table
from rich.console import Console
from rich.markup import escape

from pgprune_lightning.number_text import (
    bytes_text,
    count_text,
    latency_text,
    perplexity_text,
    seconds_text,
    share_text,
)

OVERFLOW = "overflow"


@dataclass(frozen=True)
class Value:
    """A value that results have.

    Args:
        name: Its key, dotted where it stands in a group.
        title: Its name for a reader, with its unit.
        show: How it is written.
    """

    name: str
    title: str
    show: Callable[[float | None], str]


def perplexity(value: float | None) -> str:
    """A perplexity; None stands for one that is too great for a number."""
    return OVERFLOW if value is None else perplexity_text(value)


OTHER_VALUES = (
    Value("parameters", "parameters", count_text),
    Value("parameters_share", "of dense", share_text),
    Value("seconds", "time to make", seconds_text),
    Value("peak_memory_bytes", "peak memory", bytes_text),
)
LATENCY_VALUES = (
    Value("latency.seconds", "latency", latency_text),
    Value("latency.parameter_bytes", "memory of weights", bytes_text),
)
ZERO_SHOT_AVERAGE = Value("zero_shot_average", "zero-shot average", share_text)


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings, by its dotted key."""
    if not isinstance(values, dict) or not values:
        yield prefix, values
        return
    for name, value in values.items():
        yield from leaves(value, f"{prefix}.{name}" if prefix else str(name))


def rows_as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with full precision, a column for every name in one of them."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def value_title(name: str) -> str:
    """A value's name for a reader, such as `perplexity at 128 tokens`."""
    titles = {value.name: value.title for value in (*OTHER_VALUES, ZERO_SHOT_AVERAGE)}
    return titles.get(name, name.replace("perplexity_", "perplexity at ") + " tokens")


def value_text(name: str, value: float) -> str:
    """A value as the tables write it."""
    shows = {other.name: other.show for other in (*OTHER_VALUES, ZERO_SHOT_AVERAGE)}
    return shows.get(name, perplexity)(value)


@dataclass(frozen=True)
class Table:
    """One table, whose first column names the rows.

    Args:
        title: Above it; may be empty.
        header: Names of the columns, the first one's too.
        rows: Cells, as many a row as there are columns.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> list[str]:
        """The table's lines as Markdown, without its title."""
        ruler = ["---", *["---:"] * (len(self.header) - 1)]
        return [_markdown_row(cells) for cells in (self.header, ruler, *self.rows)]

    def print(self, console: Console, heading: str = "") -> None:
        """Print the table to a terminal.

        Args:
            console: The terminal.
            heading: Before the title.
        """
        title = ": ".join(filter(None, (heading, self.title)))
        shown = rich_table.Table(
            title=escape(title), title_justify="left", box=box.SIMPLE, pad_edge=False
        )
        for position, name in enumerate(self.header):
            # A name cut short would be no name; headers may wrap.
            shown.add_column(
                escape(name), justify="right" if position else "left", no_wrap=not position
            )
        for row in self.rows:
            shown.add_row(*(escape(cell) for cell in row))
        console.print(shown)


def _markdown_row(cells: Sequence[str]) -> str:
    safe = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(safe)} |"
