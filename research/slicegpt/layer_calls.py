"""What a model calls its decoder layers with, so that a layer can be run by itself.

Shapes: B sequences, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.decoder_family import backbone_of


@dataclass(frozen=True)
class LayerCall:
    """What a decoder layer is called with: hidden states, and arguments for its attention."""

    states_BTH: Tensor
    arguments: dict[str, Any]


class _Recorder(nn.Module):
    """Stands in the place of a decoder layer, and hands on what it is given."""

    def __init__(self, calls: list[LayerCall]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        self.calls.append(LayerCall(hidden_states, arguments))
        return hidden_states


def record_layer_calls(model: PreTrainedModel, batches: Iterable[Tensor]) -> list[list[LayerCall]]:
    """List, for each batch, what each layer is called with; the layers are lost to the model.

    Which attention masks and positions belong to a layer, the model itself knows best.
    """
    backbone = backbone_of(model)
    num_layers = len(backbone.get_submodule("layers"))  # type: ignore[arg-type]
    by_batch: list[list[LayerCall]] = []
    for batch_BT in batches:
        by_batch.append([])
        backbone.layers = nn.ModuleList(_Recorder(by_batch[-1]) for _ in range(num_layers))
        backbone(batch_BT.to(model.device), use_cache=False)
    if not by_batch:
        raise UserError("slicegpt: the calibration data has no sequence to measure on.")
    return by_batch
