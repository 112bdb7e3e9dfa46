"""Every metric measures every family; what differs in a family's layout, by hand.

Shapes: U units, T tokens, I inputs of a projection, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pgprune_lightning.initialization.block_influence import block_influence_metric
from pgprune_lightning.initialization.fisher import fisher_metric
from pgprune_lightning.initialization.flap import flap_metric
from pgprune_lightning.initialization.layerwise_ppl import layerwise_ppl_metric
from pgprune_lightning.initialization.magnitude import magnitude_metric
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.initialization.taylor import taylor_metric
from pgprune_lightning.initialization.wanda_sp import wanda_sp_metric
from pgprune_lightning.policy import UnitKind
from tests.tiny_models import random_tokens

OF_PARTS = [wanda_sp_metric, flap_metric, magnitude_metric, taylor_metric, fisher_metric]
OF_WHOLE_PARTS = [
    block_influence_metric,
    layerwise_ppl_metric,
    magnitude_metric,
    taylor_metric,
    fisher_metric,
]
BATCHES = [random_tokens(rows=3), random_tokens(rows=1, seed=1)]


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3", "phi3", "opt", "gpt_neox"])
@pytest.mark.parametrize(
    ("unit_kinds", "metrics"),
    [
        (["kv_group", "mlp_channel"], OF_PARTS),
        (["layer"], OF_WHOLE_PARTS),
        (["attention", "mlp"], OF_WHOLE_PARTS),
    ],
)
def test_every_metric_tells_units_apart(
    metric_inputs: Callable[..., MetricInputs],
    name: str,
    unit_kinds: list[UnitKind],
    metrics: list[Callable[[MetricInputs], Tensor]],
) -> None:
    inputs = metric_inputs(unit_kinds, BATCHES, name=name)
    for metric in metrics:
        importance_U = metric(inputs)
        assert importance_U.isfinite().all(), metric
        assert len(importance_U.unique()) == inputs.space.num_units, metric


def test_the_rows_of_all_sequences_are_no_sequences(
    metric_inputs: Callable[..., MetricInputs], record_inputs: Callable[..., list[Tensor]]
) -> None:
    """OPT's MLP sees tokens alone; Wanda's norm is that of a sequence all the same."""
    inputs = metric_inputs(["mlp_channel"], BATCHES, name="opt")
    down: nn.Linear = inputs.model.model.decoder.layers[1].fc2
    inputs_NI = torch.stack(record_inputs(inputs, down))
    norm_I = (inputs_NI.square().sum(0) / 4).sqrt()  # of four sequences
    expected_I = down.weight.abs().mean(0) * norm_I
    found_I = inputs.space.view(wanda_sp_metric(inputs), 1, "mlp_channel")
    torch.testing.assert_close(found_I.float(), expected_I, rtol=1e-4, atol=0)


def test_parts_of_fused_projections_are_matrices(
    metric_inputs: Callable[..., MetricInputs],
) -> None:
    """Phi-3 of hidden 32: 4 query heads of 8 in 2 groups, then 2 key and 2 value heads; MLP 24."""
    inputs = metric_inputs(["kv_group", "mlp_channel"], [], name="phi3")
    layer = inputs.model.model.layers[0]
    qkv_WH, gate_up_WH = layer.self_attn.qkv_proj.weight, layer.mlp.gate_up_proj.weight
    magnitude_U = magnitude_metric(inputs)
    of_group = torch.cat(
        [
            *(part.flatten() for part in (qkv_WH[16:32], qkv_WH[40:48], qkv_WH[56:64])),
            layer.self_attn.o_proj.weight[:, 16:].flatten(),
        ]
    )
    assert float(magnitude_U[1]) == pytest.approx(float(of_group.norm()), rel=1e-5)
    of_channel = torch.cat([gate_up_WH[5], gate_up_WH[29], layer.mlp.down_proj.weight[:, 5]])
    assert float(magnitude_U[2 + 5]) == pytest.approx(float(of_channel.norm()), rel=1e-5)
