"""The page as Chromium shows it, on a desk, on a phone, in the dark and on paper."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgprune_lightning.report import read_included, read_run, report_page
from tests.headless_browser import HeadlessBrowser
from tests.report.conftest import WriteRun, made_summary

pytestmark = pytest.mark.slow

LONG = "an/organisation-with-a-name/that-does-not-end-" * 4
ATTACK = "<img src='https://example.org/x.png' onerror='document.title=1'><script>boom()</script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadlessBrowser]:
    with HeadlessBrowser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(write_run: WriteRun, tmp_path: Path) -> str:
    """The address of a report of two runs with long names, hostile texts and every section."""
    summary = made_summary() | {"base_model": LONG, "text": LONG}
    summary["sample"] = {"prompt": ATTACK, "dense": "word" * 200, "learned": ATTACK}
    folders = [write_run("a"), write_run("b" * 60, summary=summary, source=LONG)]
    runtimes = {"vLLM": {"accepts": False, "reason": LONG}}
    export = tmp_path / "export.json"
    export.write_text(json.dumps({"format": "hf", "runtimes": runtimes, "rows": [{LONG: LONG}]}))
    records = [read_run(folder, folder.name) for folder in folders]
    text = report_page(
        records, {str(export): read_included(export)}, LONG, f"pgprune report {LONG}"
    )
    path = tmp_path / "report.html"
    path.write_text(text)
    return path.as_uri()


def test_it_fetches_nothing_and_complains_of_nothing(browser: HeadlessBrowser, page: str) -> None:
    for scheme, media in (("light", "screen"), ("dark", "screen"), ("light", "print")):
        browser.show(page, 1280, scheme=scheme, media=media)
        assert browser.page.requests == [page]
        assert browser.page.complaints == []
    assert browser.evaluate("document.scripts.length + document.images.length") == 0
    assert browser.evaluate("document.title") == LONG


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_it_fits_the_screen(browser: HeadlessBrowser, page: str, width: int) -> None:
    browser.show(page, width)
    for element in ("details", "body"):  # folded, then unfolded
        wide = browser.evaluate("document.documentElement.scrollWidth")
        assert wide <= browser.evaluate("document.documentElement.clientWidth"), element
        browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")


def test_words_of_charts_can_be_read_on_a_phone(browser: HeadlessBrowser, page: str) -> None:
    browser.show(page, 360)
    pixels = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('svg.chart')].filter(s => s.clientWidth).map("
        "s => 11.5 * s.clientWidth / s.viewBox.baseVal.width))"
    )
    assert pixels > 9


def test_words_of_charts_stay_inside(browser: HeadlessBrowser, page: str) -> None:
    browser.show(page, 1280)
    outside = browser.evaluate(
        "[...document.querySelectorAll('svg.chart text')].filter(t => {"
        "const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();"
        "return b.width && (a.left < b.left - 1 || a.right > b.right + 1"
        " || a.bottom > b.bottom + 1)"
        "}).map(t => t.textContent)"
    )
    assert outside == []


def test_dark_surroundings_get_a_dark_page(browser: HeadlessBrowser, page: str) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    for scheme, media, expected in (
        ("light", "screen", "rgb(255, 255, 255)"),
        ("dark", "screen", "rgb(15, 20, 26)"),
        ("dark", "print", "rgb(255, 255, 255)"),
    ):
        browser.show(page, 800, scheme=scheme, media=media)
        assert browser.evaluate(colour) == expected
