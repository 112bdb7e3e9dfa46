"""Magnitude: the L2 norm of the weights that leave with a unit.

Shapes: U units, R rows or columns of a matrix that belong to units.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.masking.decoder_family import decoder_layers
from pgprune_lightning.masking.sharding import whole_weight
from pgprune_lightning.masking.sub_layer import DecoderLayer
from pgprune_lightning.policy.unit_layout import UnitKind


@torch.no_grad()
def magnitude_metric(inputs: MetricInputs) -> Tensor:
    """Importance by the L2 norm of a unit's weights, all its matrices taken together.

    A KV group has its rows of the query, key and value projections and its columns of the output
    projection; a channel its rows of gate and up and its column of down; a layer or sub-layer all
    of its matrices. Biases and norms are left out: they are not of the matrices' scale.

    Args:
        inputs: Model and unit layout.

    Returns:
        Importance, (U,), float64, CPU.

    Source: Ma et al. 2023 (LLM-Pruner), its L2 magnitude baseline over coupled structures.
    Differs: The root is taken, which ranks the same. FLAP's magnitude baseline sums the column
        norms of the output (down) projection alone.
    """
    layers = decoder_layers(inputs.model)
    importance_U = torch.empty(inputs.space.num_units, dtype=torch.float64)
    for group in inputs.space.groups:
        squared = sum(
            norm_R.double().square().view(group.count, -1).sum(1)
            for norm_R in _norms(layers[group.layer], group.kind)
        )
        importance_U[group.start : group.end] = torch.as_tensor(squared).sqrt()
    return importance_U


def _norms(layer: DecoderLayer, kind: UnitKind) -> Iterator[Tensor]:
    """Yield, for each matrix, the norms of the rows or columns that belong to units, (R,).

    Of a fused projection, each part is a matrix.
    """
    for part in layer.sub_layers_of(kind):
        for projection in part.inputs:
            yield from _norm(projection.linear.weight, dim=1).split(projection.parts)
        yield _norm(part.output.weight, dim=0)


def _norm(weight: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(whole_weight(weight), dim=dim, dtype=torch.float32)
