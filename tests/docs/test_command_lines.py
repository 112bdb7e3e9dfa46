"""Every command line that a page gives is one that the program takes."""

import re
from pathlib import Path

import pytest

from pgprune_lightning.errors import UserError
from tests.documentation import (
    PAGES,
    ROOT,
    commands,
    name_of,
    parser_of,
    program_lines,
)

FILE_OF_THE_CHECKOUT = re.compile(r"(?:^|=)(configs/[\w./-]+\.\w+)$")
PLACEHOLDERS = {"A.yaml", "RUN_DIR/config.yaml"}
"""Where a reader puts a recipe of their own."""

LINES = {
    " ".join(words): (page, words) for page in PAGES for words in program_lines(page.read_text())
}


def test_lines_are_found() -> None:
    found = {words[0] for _, words in LINES.values()}
    assert found >= {"fit", "test", "compare", "bench", "study", "variance"}


@pytest.mark.parametrize("line", LINES)
def test_the_program_takes_it(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page, (command, *words) = LINES[line]
    assert command in commands(), name_of(page)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PGPRUNE_DATA", str(tmp_path))
    if "--help" in words:
        return
    given = ["configs/quickstart.yaml" if word in PLACEHOLDERS else word for word in words]
    try:
        parser_of(command).parse_args(given)
    except (UserError, SystemExit) as error:
        pytest.fail(f"{name_of(page)}: {line}: {error}: {capsys.readouterr().err}")


@pytest.mark.parametrize("line", LINES)
def test_its_files_exist(line: str) -> None:
    page, words = LINES[line]
    named = [found[1] for found in map(FILE_OF_THE_CHECKOUT.search, words) if found]
    missing = [file for file in named if not (ROOT / file).is_file()]
    assert not missing, f"{name_of(page)}: {line}"
