"""Parses the trials of an experiment and builds nothing, for models that are only on the hub."""

from __future__ import annotations

from typing import Any

from pgprune_lightning.comparison import Experiment
from pgprune_lightning.comparison.trial import check_config, module_class, trial_arguments
from pgprune_lightning.run_options import resolve_config


def parsed_trial(experiment: Experiment, setting: str, method: str) -> Any:
    """The options of a trial, checked and resolved."""
    module = module_class(experiment.methods[method].kind)
    config = resolve_config(trial_arguments(experiment, setting, method), "fit", module)
    check_config(config)
    return config
