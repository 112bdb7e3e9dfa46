"""The export formats, one row each."""

from __future__ import annotations

from pgprune_lightning.export.decilm import DeciLM
from pgprune_lightning.export.export_format import ExportFormat
from pgprune_lightning.export.gguf import Gguf
from pgprune_lightning.export.hf import HuggingFace
from pgprune_lightning.export.padded import Padded
from pgprune_lightning.export.plan_only import PlanOnly
from pgprune_lightning.export.uniform import Uniform

FORMATS: dict[str, ExportFormat] = {
    export_format.name: export_format
    for export_format in (HuggingFace(), Uniform(), Padded(), PlanOnly(), Gguf(), DeciLM())
}
