"""What gates are drawn from probabilities, and how they depend on them.

Shapes: U units, D draws.
"""

import pytest
import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import FeasibleSet, UnitLayout, shift_logits
from research.backpropagation import GateDraw, GumbelSoftmax, StraightThrough, logit_gradient

SPACE = UnitLayout.build([(0, "kv_group", 2, 50, 0), (0, "mlp_channel", 4, 3, 0)], 1000)
BUDGET = FeasibleSet(SPACE, 0.5, scope="parameters")
S_U = torch.tensor([0.9, 0.2, 0.6, 0.5, 0.0, 1.0], dtype=torch.float64)


def draw(gates: GateDraw, seed: int = 0) -> tuple[Tensor, Tensor]:
    leaf_U = S_U.clone().requires_grad_()
    return leaf_U, gates.draw(leaf_U, BUDGET, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("gates", [StraightThrough(), StraightThrough("sample")])
def test_a_straight_through_gate_is_hard_and_its_slope_is_1(gates: StraightThrough) -> None:
    leaf_U, gates_U = draw(gates)
    assert set(gates_U.tolist()) <= {0.0, 1.0}
    (slope_U,) = torch.autograd.grad(gates_U.sum(), leaf_U)
    assert torch.equal(slope_U, torch.ones_like(S_U))


def test_the_mask_of_the_budget_is_run_or_samples_of_the_probabilities() -> None:
    assert torch.equal(draw(StraightThrough())[1].bool(), BUDGET.deterministic_mask(S_U))
    samples_DU = torch.stack([draw(StraightThrough("sample"), n)[1].detach() for n in range(2000)])
    torch.testing.assert_close(samples_DU.mean(0), S_U, rtol=0, atol=0.05)


def test_a_relaxed_gate_is_a_binary_concrete_variable() -> None:
    """Above one half with probability s; d gate / d s = gate (1 - gate) / (T s (1 - s))."""
    gates = GumbelSoftmax(0.5)
    samples_DU = torch.stack([draw(gates, seed)[1].detach() for seed in range(2000)])
    torch.testing.assert_close((samples_DU > 0.5).double().mean(0), S_U, rtol=0, atol=0.05)
    leaf_U, gates_U = draw(gates)
    (slope_U,) = torch.autograd.grad(gates_U.sum(), leaf_U)
    open_U = (S_U > 0) & (S_U < 1)
    expected_U = gates_U * (1 - gates_U) / (0.5 * S_U * (1 - S_U))
    torch.testing.assert_close(slope_U[open_U], expected_U[open_U].detach())
    assert torch.equal(gates_U[~open_U], S_U[~open_U])
    assert torch.equal(slope_U[~open_U], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(UserError, match=r"gates\.temperature"):
        GumbelSoftmax(temperature)


@pytest.mark.parametrize("scope", ["parameters", "per_kind"])
def test_logits_are_differentiated_through_the_shift(scope: str) -> None:
    budget = FeasibleSet(SPACE, 0.5, scope=scope)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    x_U, g_U = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    x_U = shift_logits(x_U, budget)
    step, slopes = 1e-4, []
    for unit in range(6):
        moved = []
        for sign in (1, -1):
            there_U = x_U.clone()
            there_U[unit] += sign * step
            moved.append(g_U @ shift_logits(there_U, budget).sigmoid())
        slopes.append((moved[0] - moved[1]) / (2 * step))
    expected_U = torch.stack(slopes)
    torch.testing.assert_close(
        logit_gradient(g_U, x_U.sigmoid(), budget), expected_U, rtol=1e-4, atol=1e-6
    )
