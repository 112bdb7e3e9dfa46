"""One table, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Sheet:
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
        table = Table(title=escape(title), title_justify="left", box=box.SIMPLE, pad_edge=False)
        for position, name in enumerate(self.header):
            # A name cut short would be no name; headers may wrap.
            table.add_column(
                escape(name), justify="right" if position else "left", no_wrap=not position
            )
        for row in self.rows:
            table.add_row(*(escape(cell) for cell in row))
        console.print(table)


def _markdown_row(cells: Sequence[str]) -> str:
    safe = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(safe)} |"
