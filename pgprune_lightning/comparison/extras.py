"""Checking what an experiment asks for beyond masks and perplexity, before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from pgprune_lightning.comparison.cell import Cell
from pgprune_lightning.comparison.experiment import Experiment
from pgprune_lightning.errors import about
from pgprune_lightning.evaluation import check_zero_shot_tasks
from pgprune_lightning.finetuning import check_finetuning, read_alpaca


def check_extras(experiment: Experiment, cells: Sequence[Cell]) -> None:
    """Refuse what could not be measured, such as tasks without the library that runs them.

    Args:
        experiment: Says what is measured.
        cells: Those that are to be computed. With none there is nothing to refuse: a table can be
            made of finished cells where the libraries are not.

    Raises:
        UserError: If a library or data is missing, or an option is out of range.
    """
    if not cells:
        return
    check_zero_shot_tasks(experiment.zero_shot, experiment.local_zero_shot_folder)
    if experiment.finetune is not None and any(cell.finetune for cell in cells):
        check_finetuning(experiment.finetune.lora)
        with about("finetune.records"):
            read_alpaca(experiment.finetune.records)
