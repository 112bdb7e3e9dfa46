"""The repository's studies are found in a checkout, and missed in one line elsewhere."""

import sys
from pathlib import Path

import pytest

from pgprune_lightning import checkout
from pgprune_lightning.checkout import research_module
from pgprune_lightning.cli import RESEARCH_COMMANDS, main


def test_the_studies_are_found_whatever_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    assert research_module("unit_scaling").time_by_units
    assert research_module("slicegpt").slice_model


@pytest.mark.parametrize("command", RESEARCH_COMMANDS)
def test_an_installed_package_says_where_they_are(
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    assert main([command, "--help"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: research/{command} is part of the repository")
