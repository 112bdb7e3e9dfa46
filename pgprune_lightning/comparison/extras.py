"""Checking what an experiment asks for beyond masks and perplexity, before any model is loaded."""

from __future__ import annotations

from pgprune_lightning.comparison.experiment import Experiment
from pgprune_lightning.evaluation import check_zero_shot_tasks


def check_extras(experiment: Experiment) -> None:
    """Refuse what could not be measured, such as tasks without the library that runs them.

    Not a part of reading the file: a table can be made of finished cells on a machine that has
    neither the libraries nor the data.

    Args:
        experiment: Of which cells are to be computed.

    Raises:
        UserError: If a library or data is missing.
    """
    check_zero_shot_tasks(experiment.zero_shot, experiment.local_zero_shot_folder)
