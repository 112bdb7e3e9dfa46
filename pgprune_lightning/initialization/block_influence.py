"""ShortGPT's block influence: how far a layer turns the hidden states that pass through it.

Shapes: U units (layers), B sequences, T tokens, H hidden.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.masking.decoder_family import backbone_of, decoder_layers
from pgprune_lightning.masking.sub_layer import DecoderLayer


@torch.no_grad()
def block_influence_metric(inputs: MetricInputs) -> Tensor:
    """Importance of a layer by 1 minus the mean cosine similarity of its input and output.

    The mean goes over all tokens of all sequences; one forward pass serves all layers.

    Args:
        inputs: Model, mask space of whole layers, and calibration batches.

    Returns:
        Importance, (U,), float64, CPU, in [0, 2].

    Raises:
        UserError: If there is no calibration batch.

    Source: Men et al. 2024 (ShortGPT), eq. 1.
    """
    assert inputs.space.kinds == ("layer",), inputs.space.kinds
    layers = decoder_layers(inputs.model)
    similarity_U = torch.zeros(len(layers), dtype=torch.float64, device=inputs.model.device)
    num_tokens = 0
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(_observe(layer, similarity_U).remove)
        for batch_BT in inputs.batches():
            backbone_of(inputs.model)(batch_BT, use_cache=False)
            num_tokens += batch_BT.numel()
    return (1 - similarity_U / num_tokens).cpu()


def _observe(layer: DecoderLayer, similarity_U: Tensor) -> RemovableHandle:
    def add(_module: nn.Module, arguments: tuple[Tensor], output_BTH: Tensor) -> None:
        cosine_BT = F.cosine_similarity(arguments[0].float(), output_BTH.float(), dim=-1)
        similarity_U[layer.index] += cosine_BT.sum(dtype=torch.float64)

    return layer.module.register_forward_hook(add)
