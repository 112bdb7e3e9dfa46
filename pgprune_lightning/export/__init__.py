"""From a pruning plan to a model that people load and serve: one file a format."""

from pgprune_lightning.export.planned_model import PlannedModel, open_planned_model

__all__ = ["PlannedModel", "open_planned_model"]
