"""Gates on every unit that gradients flow through, while the weights stay frozen.

A gate multiplies what a mask would: the unit's inputs of the output (down) projection, or, for a
whole sub-layer or layer, what its residual branches add. Nothing is skipped, so that units whose
gate is 0 get a gradient too.

Shapes: U units, G units of a group, B sequences (or 1, for gates that all share), T tokens,
H hidden, W width of an activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from pgprune_lightning.masking.decoder_family import backbone_of, decoder_layers
from pgprune_lightning.masking.dense_masked import by_sequence
from pgprune_lightning.masking.sub_layer import DecoderLayer
from pgprune_lightning.masking.token_loss import float_logits
from pgprune_lightning.policy.unit_layout import UnitKind, UnitLayout


@contextmanager
def gated(model: PreTrainedModel, space: UnitLayout, gates_BU: Tensor) -> Iterator[PreTrainedModel]:
    """Put gates on a model for the length of a `with` block.

    Args:
        model: The frozen model.
        space: Its units.
        gates_BU: Factor of every unit in every sequence, (B, U), or (1, U) for all sequences,
            floating point, on the model's device.

    Yields:
        The model; outside the block it is untouched again.
    """
    layers = decoder_layers(model)
    with ExitStack() as stack:
        for group in space.groups:
            gates_BG = space.view(gates_BU, group.layer, group.kind)
            for handle in _put_gates(group.kind, layers[group.layer], gates_BG):
                stack.callback(handle.remove)
        yield model


def gate_gradient(
    model: PreTrainedModel, input_ids_BT: Tensor, gates_BU: Tensor
) -> tuple[Tensor, Tensor]:
    """Back-propagate the token loss of a gated model to its gates.

    Args:
        model: A model under `gated(model, space, gates_BU)`; gradients must be enabled.
        input_ids_BT: Token ids, (B, T), int64; no padding.
        gates_BU: The gates, requiring a gradient.

    Returns:
        The mean token loss of each sequence, (B,), float32, in nats per token, and the gradient of
        their sum with respect to the gates, in the gates' shape and dtype.
    """
    hidden_BTH = backbone_of(model)(input_ids_BT, use_cache=False).last_hidden_state
    # Cut here, so that the logits of one sequence at a time are held.
    leaf_BTH = hidden_BTH.detach().requires_grad_()
    losses = []
    for hidden_TH, targets_T in zip(leaf_BTH[:, :-1], input_ids_BT[:, 1:], strict=True):
        loss = F.cross_entropy(float_logits(model, hidden_TH), targets_T)
        loss.backward()
        losses.append(loss.detach())
    (gradient_BU,) = torch.autograd.grad(hidden_BTH, gates_BU, leaf_BTH.grad)
    return torch.stack(losses), gradient_BU


def _put_gates(kind: UnitKind, layer: DecoderLayer, gates_BG: Tensor) -> Iterator[RemovableHandle]:
    parts = layer.sub_layers_of(kind)
    if kind in ("kv_group", "mlp_channel"):
        yield _gate_inputs(parts[0].output, gates_BG)
        return
    # Behind the projections, because their biases leave with the unit, and behind a norm that
    # would undo the gate.
    for part in parts:
        yield _gate_outputs(part.last, gates_BG)


def _gate_inputs(linear: nn.Linear, gates_BG: Tensor) -> RemovableHandle:
    def multiply(_module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        return (_product(arguments[0], gates_BG),)

    return linear.register_forward_pre_hook(multiply)


def _gate_outputs(module: nn.Module, gates_BG: Tensor) -> RemovableHandle:
    def multiply(_module: nn.Module, _arguments: tuple[Tensor], output_BTW: Tensor) -> Tensor:
        return _product(output_BTW, gates_BG)

    return module.register_forward_hook(multiply)


def _product(values_BTW: Tensor, gates_BG: Tensor) -> Tensor:
    factors_BW = gates_BG.repeat_interleave(values_BTW.shape[-1] // gates_BG.shape[-1], dim=1)
    # The product of half-precision values and these is float32, and so is the sum of its gradient.
    return by_sequence(values_BTW, factors_BW[:, None]).to(values_BTW.dtype)
