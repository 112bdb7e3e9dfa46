"""Wanda-sp: weight magnitude times activation norm, summed over a unit's columns.

Shapes: U units, B sequences, T tokens, I inputs and O outputs of a projection.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.masking.decoder_family import DecoderLayer, backbone_of, decoder_layers


class _InputNorm:
    """Accumulates the squared L2 norm of a linear layer's inputs over sequences."""

    def __init__(self, linear: nn.Linear) -> None:
        self.squared_I = torch.zeros(
            linear.in_features, dtype=torch.float64, device=linear.weight.device
        )
        self.num_sequences = 0

    def __call__(self, _module: nn.Module, arguments: tuple[Tensor]) -> None:
        inputs_NI = arguments[0].flatten(0, -2)
        self.squared_I += inputs_NI.float().square().sum(0)
        self.num_sequences += arguments[0].shape[0]


@torch.no_grad()
def wanda_sp_metric(inputs: MetricInputs) -> Tensor:
    """Importance of KV groups and MLP channels by Wanda, summed to structures.

    For input j of the output (down) projection, `mean_i |W_ij| * ||X_j||`, where `||X_j||` is the
    root of the squared norm over a sequence's tokens, averaged over sequences. A channel is one
    input; a KV group sums over the inputs of its heads, a unit of several channels over those.

    Args:
        inputs: Model, mask space and calibration batches.

    Returns:
        Importance, (U,), float64, CPU; raw: comparable within one layer and kind only.

    Raises:
        UserError: If the mask space has whole sub-layers or layers, which have no score.

    Source: Sun et al. 2023 (Wanda), An et al. 2023 (FLAP), where the structured variant is defined.
    Differs: Heads that share a key-value head are summed, as they stay or go together.
    """
    whole = [kind for kind in inputs.space.kinds if kind not in ("kv_group", "mlp_channel")]
    if whole:
        raise UserError(
            "initialization.metric: wanda_sp scores heads and channels, not whole layers or "
            f"sub-layers; use random for unit_kinds [{', '.join(whole)}]."
        )
    layers = decoder_layers(inputs.model)
    projections = {
        (group.layer, group.kind): _projection(layers[group.layer], group.kind)
        for group in inputs.space.groups
    }
    norms = {key: _InputNorm(linear) for key, linear in projections.items()}
    with ExitStack() as stack:
        for key, linear in projections.items():
            stack.callback(linear.register_forward_pre_hook(norms[key]).remove)
        for batch_BT in inputs.calibration_batches():
            backbone_of(inputs.model)(batch_BT.to(inputs.model.device), use_cache=False)

    importance_U = torch.empty(inputs.space.num_units, dtype=torch.float64)
    for (layer, kind), linear in projections.items():
        per_input_I = _importance_of_inputs(linear, norms[layer, kind])
        view = inputs.space.view(importance_U, layer, kind)
        view.copy_(per_input_I.view(len(view), -1).sum(1))
    return importance_U


def _projection(layer: DecoderLayer, kind: str) -> nn.Linear:
    """The projection whose inputs are divided among a kind's units."""
    return layer.attention.output if kind == "kv_group" else layer.mlp.down


def _importance_of_inputs(linear: nn.Linear, norm: _InputNorm) -> Tensor:
    if norm.num_sequences == 0:
        raise UserError("initialization: the calibration data has no sequence to measure on.")
    magnitude_I = linear.weight.abs().mean(0, dtype=torch.float32).double()
    return magnitude_I * (norm.squared_I / norm.num_sequences).sqrt()
