"""Parsing the cells of an experiment and building nothing, for models that are on the hub alone."""

from __future__ import annotations

from typing import Any

from pgprune_lightning.comparison import Experiment
from pgprune_lightning.comparison.cell import module_class
from pgprune_lightning.comparison.option_check import cell_arguments, check_config
from pgprune_lightning.run import resolve_config


def parsed_cell(experiment: Experiment, setting: str, method: str) -> Any:
    """The options of a cell, checked and resolved."""
    module = module_class(experiment.methods[method].kind)
    config = resolve_config(cell_arguments(experiment, setting, method), "fit", module)
    check_config(config)
    return config
