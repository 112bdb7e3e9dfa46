"""ShortGPT's block influence: how far a unit turns the hidden states that pass through it.

Shapes: U units (layers or sub-layers), B sequences, T tokens, N tokens of all sequences, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.masking.decoder_family import backbone_of, decoder_layers
from pgprune_lightning.masking.sub_layer import DecoderLayer, SubLayer
from pgprune_lightning.policy.unit_layout import UnitKind

Add = Callable[[Tensor, Tensor], None]
"""Takes what a unit is given of the residual stream and what it leaves there, (..., H) each."""


@torch.no_grad()
def block_influence_metric(inputs: MetricInputs) -> Tensor:
    """Importance by 1 minus the mean cosine similarity of the residual stream before and behind.

    The mean goes over all tokens of all sequences; one forward pass serves all units. Where
    attention and MLP read the same stream side by side, each is taken as if the other were not.

    Args:
        inputs: Model, unit layout of whole layers or sub-layers, and calibration batches.

    Returns:
        Importance, (U,), float64, CPU, in [0, 2].

    Raises:
        UserError: If there is no calibration batch.

    Source: Men et al. 2024 (ShortGPT), eq. 1; of sub-layers, He et al. 2024, "What Matters in
        Transformers? Not All Attention is Needed", with the residual inside.
    """
    layers = decoder_layers(inputs.model)
    similarity_U = torch.zeros(
        inputs.space.num_units, dtype=torch.float64, device=inputs.model.device
    )
    num_tokens = torch.zeros((), dtype=torch.int64)
    sums = {"similarity_U": similarity_U, "num_tokens": num_tokens}
    with ExitStack() as stack:
        for group in inputs.space.groups:
            assert group.count == 1, group.kind
            for handle in _observe(
                layers[group.layer], group.kind, _adder(similarity_U, group.start)
            ):
                stack.callback(handle.remove)
        for batch_BT in inputs.measured_batches("block_influence", sums):
            backbone_of(inputs.model)(batch_BT, use_cache=False)
            num_tokens += batch_BT.numel()
    return (1 - similarity_U / int(num_tokens)).cpu()


def _adder(similarity_U: Tensor, unit: int) -> Add:
    def add(before: Tensor, behind: Tensor) -> None:
        cosine_N = F.cosine_similarity(before.float(), behind.float(), dim=-1).flatten()
        similarity_U[unit] += cosine_N.sum(dtype=torch.float64)

    return add


def _observe(layer: DecoderLayer, kind: UnitKind, add: Add) -> Iterator[RemovableHandle]:
    if kind == "layer":
        yield layer.module.register_forward_hook(
            lambda _module, arguments, output: add(arguments[0], output)
        )
        return
    (part,) = layer.sub_layers_of(kind)
    yield from _observe_sub_layer(part, add)


def _observe_sub_layer(part: SubLayer, add: Add) -> Iterator[RemovableHandle]:
    """Note what the norm in front is given, and compare it when the sub-layer's share is there."""
    given: list[Tensor] = []

    def note(_module: nn.Module, arguments: tuple[Tensor]) -> None:
        given.append(arguments[0])

    def compare(_module: nn.Module, _arguments: tuple[Tensor], added: Tensor) -> None:
        before = given.pop()
        add(before, before + added)

    yield part.norms[0].register_forward_pre_hook(note)
    yield part.last.register_forward_hook(compare)
