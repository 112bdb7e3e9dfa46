"""What families that are not laid out as Llama are written as.

Shapes: U units.
"""

from __future__ import annotations

import pytest
import torch

from pgprune_lightning.export.stock import stock_config
from pgprune_lightning.export.widths import layer_widths
from pgprune_lightning.masking import FAMILIES, unit_layout_of
from pgprune_lightning.modeling_pruned import FAMILY_STEMS
from tests.tiny_models import make_tiny_model


def test_every_family_has_its_classes() -> None:
    prunable = {model_type for family in FAMILIES for model_type in family.model_types}
    assert set(FAMILY_STEMS) == prunable


@pytest.mark.parametrize("name", ["opt", "gpt_neox"])
def test_heads_that_share_the_hidden_size_cannot_be_fewer(name: str) -> None:
    """Two of four heads of 8 would be two of 16: another model, and no error of transformers'."""
    model = make_tiny_model(name)
    space = unit_layout_of(model, ["kv_group"])
    half_U = torch.tensor([True, False, True, False] * 3)
    widths = layer_widths(model.config, space, half_U)
    reason = stock_config(model.config, widths)
    assert isinstance(reason, str)
    assert "refuses 2 query heads: its heads share the hidden size" in reason
