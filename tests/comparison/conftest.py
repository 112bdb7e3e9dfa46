import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny_commands import TinyCommand

EXPERIMENT: dict[str, Any] = {
    "title": "Two masks",
    "recipe": "config.yaml",
    "settings": {"0.8": {"model.keep_ratio": 0.8}, "0.6": {"model": {"keep_ratio": 0.6}}},
    "methods": {
        "dense": {"kind": "dense"},
        "wanda_sp": {"kind": "metric", "options": {"model.initialization.metric": "wanda_sp"}},
        "learned": {"kind": "learned"},
    },
    "evaluation_lengths": [16, 48],
}


@pytest.fixture
def experiment_file(tiny_command: TinyCommand) -> Callable[..., Path]:
    """Writes an experiment file beside the recipe of a tiny model; keys given override."""

    def write(**changes: Any) -> Path:
        path = tiny_command.config.with_name("experiment.yaml")
        path.write_text(yaml.safe_dump(copy.deepcopy(EXPERIMENT) | changes, sort_keys=False))
        return path

    return write
