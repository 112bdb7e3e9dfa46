"""Structural pruning of large language models by policy gradient, with forward passes only.

The names of `__all__` are imported when they are first used: the package itself imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pgprune_lightning.auto_classes import register_pruned_models
from pgprune_lightning.errors import UserError

if TYPE_CHECKING:
    from pgprune_lightning.data.data_module import TokenBlocksDataModule
    from pgprune_lightning.data.text_source import TextSource
    from pgprune_lightning.export import open_planned_model
    from pgprune_lightning.initialization import Initialization
    from pgprune_lightning.plan import PruningPlan
    from pgprune_lightning.run import Run, build_run, execute_run
    from pgprune_lightning.run_options import resolve_config
    from pgprune_lightning.training import PolicyGradientPruning
    from pgprune_lightning.training.mask_evaluator import MaskEvaluator
    from pgprune_lightning.training.options import (
        BudgetOptions,
        ExecutionOptions,
        UnitOptions,
        UpdateOptions,
    )

__version__ = "0.1.0"

__all__ = [
    "BudgetOptions",
    "ExecutionOptions",
    "Initialization",
    "MaskEvaluator",
    "PolicyGradientPruning",
    "PruningPlan",
    "Run",
    "TextSource",
    "TokenBlocksDataModule",
    "UnitOptions",
    "UpdateOptions",
    "UserError",
    "build_run",
    "execute_run",
    "open_planned_model",
    "resolve_config",
]

_MODULES = {
    "data.data_module": ("TokenBlocksDataModule",),
    "data.text_source": ("TextSource",),
    "export": ("open_planned_model",),
    "initialization": ("Initialization",),
    "plan": ("PruningPlan",),
    "run": ("Run", "build_run", "execute_run"),
    "run_options": ("resolve_config",),
    "training": ("PolicyGradientPruning",),
    "training.mask_evaluator": ("MaskEvaluator",),
    "training.options": ("BudgetOptions", "ExecutionOptions", "UnitOptions", "UpdateOptions"),
}
"""Where the names are that are imported late."""

register_pruned_models()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    for module, names in _MODULES.items():
        if name in names:
            globals()[name] = getattr(import_module(f"pgprune_lightning.{module}"), name)
            return globals()[name]
    raise AttributeError(f"module 'pgprune_lightning' has no attribute {name!r}")
