"""Parsing the cells of an experiment and building nothing, for models that are on the hub alone."""

from __future__ import annotations

from typing import Any, NoReturn

from pgprune_lightning.comparison import Experiment
from pgprune_lightning.comparison.cell import module_class
from pgprune_lightning.comparison.option_check import cell_arguments, check_config
from pgprune_lightning.comparison.repeated_cli import RaisingParser, RepeatedCLI
from pgprune_lightning.pruning_cli import run_command


class _Parsed(Exception):  # noqa: N818 - a signal, no error
    """Ends LightningCLI's work before it builds what it has parsed."""


class _ParsingCLI(RepeatedCLI):
    """Parses and checks as a cell does, and stops."""

    @staticmethod
    def check(config: Any) -> NoReturn:
        """Hand the configuration over."""
        RepeatedCLI.check(config)
        check_config(config)
        raise _Parsed(config)


def parsed_cell(experiment: Experiment, setting: str, method: str) -> Any:
    """The options of a cell, checked and resolved."""
    arguments = ["fit", *cell_arguments(experiment, setting, method)]
    try:
        module = module_class(experiment.methods[method].kind)
        run_command(arguments, _ParsingCLI, RaisingParser, module)
    except _Parsed as parsed:
        return parsed.args[0]
    raise AssertionError("LightningCLI has not checked its configuration")
