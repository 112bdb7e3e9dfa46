"""The examples of docs/adding/ are run, and so are the tests that their pages give."""

from typing import Any

import pytest

from pgprune_lightning.initialization.initial_policy import METRICS
from pgprune_lightning.masking import decoder_family
from tests.documentation import ROOT, blocks
from tests.tiny_models import CONFIGS

ADDING = ROOT / "docs" / "adding"


def run_blocks(name: str) -> dict[str, Any]:
    """What the Python blocks of a page define, run one after another."""
    names: dict[str, Any] = {"__name__": f"docs.adding.{name}"}
    for number, source in enumerate(blocks((ADDING / f"{name}.md").read_text(), "python"), start=1):
        exec(compile(source, f"docs/adding/{name}.md, block {number}", "exec"), names)
    return names


def run_tests(names: dict[str, Any]) -> None:
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_the_estimator() -> None:
    run_tests(run_blocks("estimator"))


def test_the_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_blocks("metric")
    for metric, row in names["ROW"].items():
        monkeypatch.setitem(METRICS, metric, row)  # type: ignore[misc]
    run_tests(names)


def test_the_family(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_blocks("family")
    families = (*decoder_family.FAMILIES, names["FAMILY"])
    monkeypatch.setattr(decoder_family, "FAMILIES", families)
    for name, row in names["CONFIG"].items():
        monkeypatch.setitem(CONFIGS, name, row)
    run_tests(names)


def test_the_export_format() -> None:
    run_tests(run_blocks("export_format"))
