"""The report: one file that needs no network, no script and no other file."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pgprune_lightning import __version__
from pgprune_lightning.reporting.comparison_section import comparison_section
from pgprune_lightning.reporting.included_files import IncludedFile, included_section
from pgprune_lightning.reporting.markup import Markup, element, joined
from pgprune_lightning.reporting.run_record import RunRecord
from pgprune_lightning.reporting.run_section import run_section
from pgprune_lightning.reporting.style import CHART_STYLE, PAGE_STYLE

NO_NETWORK = "default-src 'none'; style-src 'unsafe-inline'"
"""The browser itself refuses scripts and whatever would be fetched."""


def report_page(
    records: Sequence[RunRecord], included: Sequence[IncludedFile], title: str, command: str
) -> str:
    """The whole page.

    Args:
        records: The runs, at least one.
        included: Results of other commands.
        title: The page's title.
        command: What a user types to write it again.
    """
    body = joined(
        element("header", element("h1", title), _contents(records, included)),
        element(
            "main",
            comparison_section(records) if len(records) > 1 else None,
            *(
                run_section(record, number, alone=len(records) == 1)
                for number, record in enumerate(records)
            ),
            _included(included),
        ),
        element("footer", _footer(command)),
    )
    return document(title, body, CHART_STYLE + PAGE_STYLE)


def document(title: str, body: Markup, style: str) -> str:
    """A page around what it shows.

    Args:
        title: Shown by the browser.
        body: What it shows.
        style: Its style sheet.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=NO_NETWORK),
        element("title", title),
        element("style", Markup(style)),
    )
    return "<!doctype html>\n" + element("html", head, element("body", body), lang="en") + "\n"


def _contents(records: Sequence[RunRecord], included: Sequence[IncludedFile]) -> Markup | None:
    """Links, where there is more than one run."""
    if len(records) < 2 and not included:
        return None
    links = [("compared", "The runs compared")] if len(records) > 1 else []
    links += [(f"run{number}", record.name) for number, record in enumerate(records)]
    if included:
        links.append(("further", "Further results"))
    items = (element("li", element("a", name, href=f"#{target}")) for target, name in links)
    return element("nav", element("ul", *items), aria_label="Contents")


def _included(included: Sequence[IncludedFile]) -> Markup | None:
    if not included:
        return None
    sections = (included_section(file, "h3") for file in included)
    return joined(element("h2", "Further results", id="further"), *sections)


def _footer(command: str) -> Markup:
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return joined(
        f"Written by pgprune-lightning {__version__} on {when}: ", element("code", command)
    )
