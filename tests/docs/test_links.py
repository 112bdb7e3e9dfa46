"""What a page points to is there: other pages, their headings, files of the checkout."""

import re
from pathlib import Path

import pytest

from tests.documentation import PAGES, ROOT, blocks, code_spans, name_of

LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"(?:configs|docs|docker|tests|callbacks|pgprune_lightning)/[\w./-]*[\w/]")


def anchors(page: Path) -> set[str]:
    """What headings are called in links, as GitHub forms it."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(link)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    named = [ROOT / span for span in code_spans(page.read_text()) if FILE.fullmatch(span)]
    missing = [name_of(file) for file in named if not file.exists()]
    assert not missing


def test_every_page_is_on_the_map() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {
        (index.parent / link.partition("#")[0]).resolve()
        for link in LINK.findall(index.read_text())
    }
    lost = [name_of(page) for page in (ROOT / "docs").rglob("*.md") if page not in {*linked, index}]
    assert not lost, "add them to docs/README.md"


def test_the_tree_of_files_is_that_of_the_checkout() -> None:
    (tree,) = blocks((ROOT / "docs" / "architecture.md").read_text(), "")
    folders: list[str] = []
    missing = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r" {2,}", line.strip())[0].split(", ")
        paths = ["/".join([*folders[:depth], name.rstrip("/")]) for name in names]
        missing += [path for path in paths if not (ROOT / path).exists()]
        if names[0].endswith("/"):
            folders = [*folders[:depth], names[0].rstrip("/")]
    assert not missing


def test_the_index_of_questions_points_at_code() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    pairs = re.findall(r"`([\w/]+\.py)`: `(\w+)`", text)
    assert len(pairs) > 10
    places = {file: (ROOT / "pgprune_lightning" / file, ROOT / file) for file, _ in pairs}
    texts = {
        file: "".join(path.read_text() for path in paths if path.exists())
        for file, paths in places.items()
    }
    assert not [pair for pair in pairs if not re.search(rf"\b{pair[1]}\b", texts[pair[0]])]
