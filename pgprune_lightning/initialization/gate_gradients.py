"""Gates of value 1 on every unit, and the gradient of the calibration loss with respect to them.

A gate multiplies what a mask would: the unit's inputs of the output (down) projection, or, for a
layer, what its two residual branches add. Its gradient is what removing the unit costs, to first
order. This is the one place where anything is back-propagated through the model.

Shapes: U units, G units of a group, B sequences, T tokens, H hidden, W width of an activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.initialization.projection_inputs import PROJECTIONS
from pgprune_lightning.masking.decoder_family import DecoderLayer, backbone_of, decoder_layers
from pgprune_lightning.policy.mask_space import MaskSpace, UnitKind

GATED_KINDS: tuple[UnitKind, ...] = (*PROJECTIONS, "layer")


def gate_gradients(inputs: MetricInputs) -> Iterator[Tensor]:
    """Yield the gate gradients of every calibration sequence, batch by batch.

    Args:
        inputs: Model, mask space and calibration batches.

    Yields:
        Gradients, (B, U), float64, CPU: of a sequence's mean token loss, in nats per token, with
        respect to its own gates, so that they do not depend on how sequences are batched.

    Raises:
        UserError: If there is no calibration batch.
    """
    layers = decoder_layers(inputs.model)
    for batch_BT in inputs.batches():
        # The caller may be within no_grad, as whatever only reads the model is.
        with torch.enable_grad(), ExitStack() as stack:
            gates_BU = torch.ones(
                (batch_BT.shape[0], inputs.space.num_units),
                device=batch_BT.device,
                requires_grad=True,
            )
            for handle in _put_gates(inputs.space, layers, gates_BU):
                stack.callback(handle.remove)
            gradients_BU = _gradients_of_loss(inputs.model, batch_BT, gates_BU)
        yield gradients_BU.double().cpu()


def _put_gates(
    space: MaskSpace, layers: list[DecoderLayer], gates_BU: Tensor
) -> Iterator[RemovableHandle]:
    for group in space.groups:
        layer = layers[group.layer]
        gates_BG = space.view(gates_BU, group.layer, group.kind)
        if group.kind == "layer":
            # Behind the projections, because their biases leave with the layer.
            yield _gate_outputs(layer.attention.output, gates_BG)
            yield _gate_outputs(layer.mlp.down, gates_BG)
        else:
            yield _gate_inputs(PROJECTIONS[group.kind](layer), gates_BG)


def _gate_inputs(linear: nn.Linear, gates_BG: Tensor) -> RemovableHandle:
    def multiply(_module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        return (_gated(arguments[0], gates_BG),)

    return linear.register_forward_pre_hook(multiply)


def _gate_outputs(linear: nn.Linear, gates_BG: Tensor) -> RemovableHandle:
    def multiply(_module: nn.Module, _arguments: tuple[Tensor], output_BTW: Tensor) -> Tensor:
        return _gated(output_BTW, gates_BG)

    return linear.register_forward_hook(multiply)


def _gated(values_BTW: Tensor, gates_BG: Tensor) -> Tensor:
    factors_BW = gates_BG.repeat_interleave(values_BTW.shape[-1] // gates_BG.shape[-1], dim=1)
    # The product of half-precision values and these is float32, and so is the sum of its gradient.
    return (values_BTW * factors_BW[:, None]).to(values_BTW.dtype)


def _gradients_of_loss(model: PreTrainedModel, input_ids_BT: Tensor, gates_BU: Tensor) -> Tensor:
    hidden_BTH = backbone_of(model)(input_ids_BT, use_cache=False).last_hidden_state
    # Cut here, so that the logits of one sequence at a time are held.
    leaf_BTH = hidden_BTH.detach().requires_grad_()
    head = model.get_output_embeddings()
    for hidden_TH, targets_T in zip(leaf_BTH[:, :-1], input_ids_BT[:, 1:], strict=True):
        F.cross_entropy(head(hidden_TH).float(), targets_T).backward()
    (gradients_BU,) = torch.autograd.grad(hidden_BTH, gates_BU, leaf_BTH.grad)
    return gradients_BU
