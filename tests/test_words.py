"""Names and texts speak of the project alone: no catch-all names, no paths of one machine."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

CATCH_ALL_FILE = re.compile(r"(^|_)(utils?|helpers?|managers?|misc)$")
CATCH_ALL_CLASS = re.compile(r"^\s*class\s+(\w*(?:Utils?|Helpers?|Managers?))\b", re.MULTILINE)
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:root|work)/[\w.]")


def _project_files() -> list[Path]:
    """What git tracks, and what it would add: a gate is run before the commit."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [file for file in files if file.is_file()]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    found = {}
    for file in _project_files():
        content = file.read_bytes()
        if b"\0" not in content:
            found[file.relative_to(ROOT).as_posix()] = content.decode("utf-8")
    assert "pyproject.toml" in found
    return found


def _hits(pattern: re.Pattern[str], texts: dict[str, str]) -> list[str]:
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match.group().strip()}"
        for name, text in texts.items()
        for match in pattern.finditer(text)
    ]


def test_no_catch_all_file(texts: dict[str, str]) -> None:
    modules = [Path(name) for name in texts if name.endswith(".py")]
    named_so = [str(path) for path in modules if CATCH_ALL_FILE.search(path.stem)]
    assert not named_so, f"name each file after what it does: {named_so}"


def test_no_catch_all_class(texts: dict[str, str]) -> None:
    hits = _hits(CATCH_ALL_CLASS, {name: texts[name] for name in texts if name.endswith(".py")})
    assert not hits, "name each class after what it is:\n" + "\n".join(hits)


def test_no_path_of_one_machine(texts: dict[str, str]) -> None:
    hits = _hits(MACHINE_PATH, texts)
    assert not hits, "a path that only one machine has:\n" + "\n".join(hits)
