"""A small experiment file, and `compare` run on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny_commands import Outcome, TinyCommand

EXPERIMENT: dict[str, Any] = {
    "title": "Four masks of a tiny model",
    "recipe": "config.yaml",
    "methods": {
        "dense": {"kind": "dense"},
        "wanda_sp": {"kind": "metric"},
        "random": {"kind": "metric", "options": {"model.initialization.metric": "random"}},
        "layers": {
            "kind": "metric",
            "options": {
                "model.units.kinds": ["layer"],
                "model.keep_ratio": 0.7,
                "model.initialization.metric": "block_influence",
            },
        },
        "learned": {"kind": "learned"},
    },
    "seeds": [0, 1],
    "evaluation_lengths": [16, 48],
    "picture": [{"kind": "bars"}, {"kind": "hamming"}],
}

Compare = Callable[..., Outcome]


@pytest.fixture
def compare(tiny_command: TinyCommand, tmp_path: Path) -> Compare:
    """Runs an experiment on the tiny model; keys given override those of the file."""
    from pgprune_lightning.cli import main

    def run(*arguments: str, **changes: Any) -> Outcome:
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(EXPERIMENT | changes, sort_keys=False))
        tiny_command.outcome(0)
        output = ("--output", str(tmp_path / "out"))
        return tiny_command.outcome(main(["compare", "--config", str(path), *output, *arguments]))

    return run


def results_in(tmp_path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((tmp_path / "out" / "compare.json").read_text())
    return data
