"""From a pruning plan to a model that people load and serve: one file a format."""

from pgprune_lightning.export.export_format import (
    ExportFormat,
    ExportOptions,
    Logits,
    PrunedModel,
)
from pgprune_lightning.export.planned_model import PlannedModel, open_planned_model
from pgprune_lightning.export.widths import LayerWidths, layer_widths

__all__ = [
    "ExportFormat",
    "ExportOptions",
    "LayerWidths",
    "Logits",
    "PlannedModel",
    "PrunedModel",
    "layer_widths",
    "open_planned_model",
]
