"""Gate gradients against finite differences of the loss, and without a trace in the model.

Shapes: U units, B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.gate_gradients import gate_gradients
from pgprune_lightning.initialization.metric import MetricInputs
from tests.tiny_models import KINDS, random_tokens

# Two sequences whose losses must stay apart, then one.
BATCHES = [random_tokens(rows=2, tokens=12), random_tokens(rows=1, tokens=12, seed=1)]


def losses(model: PreTrainedModel, batch_BT: Tensor) -> Tensor:
    """Mean token loss of each sequence, (B,), float64."""
    with torch.no_grad():
        logits = model(batch_BT).logits[:, :-1]
    nll = F.cross_entropy(logits.transpose(1, 2), batch_BT[:, 1:], reduction="none")
    return nll.mean(1)


def gated_weights(module: nn.Module, kind: str, index: int, width: int) -> list[Tensor]:
    """The parts of a layer's weights whose scaling is that of the unit's gate."""
    attention, mlp = module.self_attn.o_proj, module.mlp.down_proj
    if kind == "layer":
        return [attention.weight, attention.bias, mlp.weight, mlp.bias]
    linear = attention if kind in ("kv_group", "attention") else mlp
    if kind in ("attention", "mlp"):
        return [linear.weight, linear.bias]
    return [linear.weight[:, index * width : (index + 1) * width]]


@pytest.mark.parametrize(
    "unit_kinds", [["kv_group", "mlp_channel"], ["layer"], ["attention", "mlp"]]
)
def test_equal_finite_differences(
    metric_inputs: Callable[..., MetricInputs], unit_kinds: list[str]
) -> None:
    inputs = metric_inputs(unit_kinds, BATCHES, name="llama_biased", dtype=torch.float64)
    # The model's norms compute in float32 whatever its type, which a smaller step would show.
    space, step = inputs.space, 1e-2
    width = {"kv_group": 2 * 8, "mlp_channel": 1}
    gradients_NU = torch.cat(list(gate_gradients(inputs, "gates", {})))
    assert gradients_NU.shape == (3, space.num_units)
    assert gradients_NU.dtype == torch.float64
    for unit in {0, 1, 2, space.num_units // 2, space.num_units - 1}:
        layer, kind, index = space.locate(unit)
        weights = gated_weights(inputs.model.model.layers[layer], kind, index, width.get(kind, 0))
        originals = [weight.clone() for weight in weights]
        moved = []
        for factor in (1 + step, 1 - step):
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original * factor)
            moved.append(torch.cat([losses(inputs.model, batch_BT) for batch_BT in BATCHES]))
        for weight, original in zip(weights, originals, strict=True):
            weight.copy_(original)
        slope_N = (moved[0] - moved[1]) / (2 * step)
        torch.testing.assert_close(gradients_NU[:, unit], slope_N, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("units", KINDS.values(), ids=KINDS)
def test_leaves_no_trace(metric_inputs: Callable[..., MetricInputs], units: dict[str, Any]) -> None:
    inputs = metric_inputs(batches=BATCHES, **units)
    before = losses(inputs.model, BATCHES[0])
    with torch.no_grad():  # as the caller has it
        for gradients_BU in gate_gradients(inputs, "gates", {}):
            assert gradients_BU.ne(0).any()
            assert not gradients_BU.requires_grad
            assert not torch.is_grad_enabled()
    for parameter in inputs.model.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
    for module in inputs.model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    assert torch.equal(losses(inputs.model, BATCHES[0]), before)


def test_removes_its_gates_when_a_batch_fails(metric_inputs: Callable[..., MetricInputs]) -> None:
    inputs = metric_inputs(["kv_group"], [torch.full((1, 4), 10_000)])
    with pytest.raises(IndexError):
        list(gate_gradients(inputs, "gates", {}))
    assert not any(module._forward_pre_hooks for module in inputs.model.modules())


def test_half_precision_comes_near(metric_inputs: Callable[..., MetricInputs]) -> None:
    """Weights of 8 bits, sums of 24: the model's rounding is seen, that of the gates is not."""
    kinds = ["kv_group", "mlp_channel"]
    exact_NU, half_NU = (
        torch.cat(list(gate_gradients(metric_inputs(kinds, BATCHES, dtype=dtype), "gates", {})))
        for dtype in (torch.float32, torch.bfloat16)
    )
    similarity_N = F.cosine_similarity(exact_NU, half_NU)
    assert similarity_N.min() > 0.99


@pytest.mark.parametrize(
    ("tokens", "rows_together"), [(25, [2, 2, 1]), (24, [2, 2, 1]), (11, [1] * 5)]
)
def test_activations_are_held_for_few_tokens_at_once(
    metric_inputs: Callable[..., MetricInputs],
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
    rows_together: list[int],
) -> None:
    inputs = metric_inputs(["kv_group", "mlp_channel"], [random_tokens(rows=5, tokens=12)])
    (whole_BU,) = gate_gradients(inputs, "gates", {})
    rows: list[int] = []
    inputs.model.get_input_embeddings().register_forward_hook(
        lambda _module, arguments, _output: rows.append(len(arguments[0]))
    )
    monkeypatch.setattr("pgprune_lightning.initialization.gate_gradients.TOKENS_AT_ONCE", tokens)
    (parts_BU,) = gate_gradients(inputs, "gates", {})
    assert rows == rows_together
    torch.testing.assert_close(parts_BU, whole_BU, rtol=1e-4, atol=1e-9)


def test_no_calibration_data(metric_inputs: Callable[..., MetricInputs]) -> None:
    with pytest.raises(UserError, match="no sequence to measure on"):
        list(gate_gradients(metric_inputs(["kv_group"], []), "gates", {}))
