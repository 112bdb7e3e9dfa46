"""Bonsai: a linear loss gives its weights back, and the unit that matters most comes first.

Shapes: U units, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization import bonsai
from pgprune_lightning.initialization.bonsai import (
    DROP_SHARE,
    bonsai_metric,
    draw_pair,
    drop_probabilities,
    ridge_coefficients,
)
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.masking import DenseMaskedExecution, token_nll
from pgprune_lightning.policy import UnitLayout
from tests.tiny_models import random_tokens

BATCHES = [random_tokens(rows=3), random_tokens(rows=1, seed=1)]


def random_design(pairs: int, units: int) -> Tensor:
    """What tells the sub-networks of random pairs apart, (P, U): -1/2, 0 or 1/2."""
    generator = torch.Generator().manual_seed(4)
    return torch.randint(-1, 2, (pairs, units), generator=generator).double() / 2


def primal(
    design_PU: Tensor, target_P: Tensor, centre_U: Tensor, variance_U: Tensor, penalty: float
) -> Tensor:
    """The same ridge by its normal equations in the units."""
    normal_UU = design_PU.T @ design_PU + penalty * torch.diag(1 / variance_U)
    gradient_U = design_PU.T @ (target_P - design_PU @ centre_U)
    return centre_U + torch.linalg.solve(normal_UU, gradient_U)


class TestRidge:
    pairs, units = 12, 30

    def problem(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(5)
        target_P, centre_U, noise_U = (
            torch.randn(size, generator=generator, dtype=torch.float64)
            for size in (self.pairs, self.units, self.units)
        )
        return random_design(self.pairs, self.units), target_P, centre_U, noise_U.exp()

    @pytest.mark.parametrize("penalty", [1e-3, 1.0, 100.0])
    def test_the_dual_equals_the_primal(
        self, monkeypatch: pytest.MonkeyPatch, penalty: float
    ) -> None:
        monkeypatch.setattr(bonsai, "PENALTIES", (penalty,))
        torch.testing.assert_close(
            ridge_coefficients(*self.problem()), primal(*self.problem(), penalty)
        )

    @pytest.mark.parametrize("noise", [0.0, 0.3, 30.0])
    def test_the_penalty_is_the_one_that_predicts_pairs_left_out(
        self, monkeypatch: pytest.MonkeyPatch, noise: float
    ) -> None:
        penalties = (1e-4, 1.0, 10.0, 1000.0)
        design_PU, noise_P, centre_U, variance_U = self.problem()
        deviation_U = random_design(1, self.units)[0]
        target_P = design_PU @ (centre_U + deviation_U) + noise * noise_P
        errors = {}
        for penalty in penalties:
            residuals = []
            for left_out in range(self.pairs):
                rest = torch.arange(self.pairs) != left_out
                w_U = primal(design_PU[rest], target_P[rest], centre_U, variance_U, penalty)
                residuals.append(float(target_P[left_out] - design_PU[left_out] @ w_U))
            errors[penalty] = sum(residual**2 for residual in residuals)
        best = min(errors, key=errors.__getitem__)
        monkeypatch.setattr(bonsai, "PENALTIES", penalties)
        torch.testing.assert_close(
            ridge_coefficients(design_PU, target_P, centre_U, variance_U),
            primal(design_PU, target_P, centre_U, variance_U, best),
        )

    def test_without_a_sample_the_prior_is_left(self) -> None:
        _, _, centre_U, variance_U = self.problem()
        nothing_PU, target_P = torch.zeros(3, self.units).double(), torch.ones(3).double()
        w_U = ridge_coefficients(nothing_PU, target_P, centre_U, variance_U)
        assert torch.equal(w_U, centre_U)


def linear_loss(monkeypatch: pytest.MonkeyPatch, weights_U: Tensor) -> None:
    """Let the loss be 3 nats plus the weights of what is dropped."""
    entered = DenseMaskedExecution.masked

    def masked(self: DenseMaskedExecution, mask_U: Tensor) -> object:
        losses.append(3 + float(weights_U[~mask_U].sum()))
        return entered(self, mask_U)

    losses: list[float] = []
    monkeypatch.setattr(DenseMaskedExecution, "masked", masked)
    monkeypatch.setattr(
        bonsai, "token_nll", lambda _model, batch_BT: torch.full(batch_BT.shape, losses[-1])
    )


@pytest.mark.parametrize(
    "units",
    [
        {"unit_kinds": ["kv_group", "mlp_channel"], "channels_per_unit": 4},
        {"unit_kinds": ["attention", "mlp"]},
    ],
)
def test_a_linear_loss_gives_its_weights_back(
    metric_inputs: Callable[..., MetricInputs],
    monkeypatch: pytest.MonkeyPatch,
    units: dict[str, Any],
) -> None:
    inputs = metric_inputs(batches=BATCHES, **units)
    generator = torch.Generator().manual_seed(6)
    weights_U = torch.randn(inputs.space.num_units, generator=generator, dtype=torch.float64)
    linear_loss(monkeypatch, weights_U)
    # The channels that are best by the prior are dropped once in 60 draws, by each of the two.
    monkeypatch.setattr(bonsai, "NUM_PAIRS", 400)
    torch.testing.assert_close(bonsai_metric(inputs), weights_U, atol=1e-4, rtol=0)


def test_too_few_samples_fall_back_on_the_prior(
    metric_inputs: Callable[..., MetricInputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prior, 1 on average in each group, takes on the scale that the losses have."""
    inputs = metric_inputs(["kv_group", "mlp_channel"], BATCHES)
    prior_U = bonsai._prior(inputs)
    for group in inputs.space.groups:
        assert prior_U[group.start : group.end].mean() == pytest.approx(1)
    weights_U = torch.full_like(prior_U, 0.02)
    channels, heads = (inputs.space.units_of(kind) for kind in ("mlp_channel", "kv_group"))
    weights_U[heads] *= len(channels) / len(heads)
    linear_loss(monkeypatch, weights_U * prior_U)
    monkeypatch.setattr(bonsai, "PENALTIES", (1e12,))
    torch.testing.assert_close(bonsai_metric(inputs), weights_U * prior_U, rtol=0.15, atol=0)


def test_the_pair_of_a_draw(space: UnitLayout) -> None:
    generator = torch.Generator().manual_seed(7)
    prior_U = torch.rand(space.num_units, generator=generator, dtype=torch.float64)
    space.view(prior_U, 1, "mlp_channel").fill_(0.5)
    drop_U = drop_probabilities(prior_U, space)
    for group in space.groups:
        part = slice(group.start, group.end)
        ranked = drop_U[part][prior_U[part].argsort()].tolist()
        assert drop_U[part].mean() == pytest.approx(DROP_SHARE)
        assert all(earlier >= later > 0 for earlier, later in pairwise(ranked))
    assert space.view(drop_U, 1, "mlp_channel").unique().tolist() == pytest.approx([DROP_SHARE])
    assert space.view(drop_U, 0, "kv_group").sort().values.tolist() == pytest.approx(
        [DROP_SHARE / 2, 1.5 * DROP_SHARE]
    )
    num_draws = 20_000
    draws = [draw_pair(drop_U, generator) for _ in range(num_draws)]
    assert not any(bool((first_U & second_U).any()) for first_U, second_U in draws)
    for index in (0, 1):
        share_U = torch.stack([draw[index] for draw in draws]).double().mean(0)
        deviation_U = (drop_U * (1 - drop_U) / num_draws).sqrt()
        assert ((share_U - drop_U).abs() < 4.5 * deviation_U).all()


@pytest.mark.parametrize("unit_kind", ["kv_group", "mlp_channel", "attention", "layer"])
@pytest.mark.parametrize("family", ["llama_gqa", "mistral", "qwen2", "qwen3"])
def test_the_unit_whose_removal_is_worst_comes_first(
    metric_inputs: Callable[..., MetricInputs], family: str, unit_kind: str
) -> None:
    (batch_BT,) = batches = [random_tokens(rows=4)]
    inputs = metric_inputs([unit_kind], batches, name=family)
    execution = DenseMaskedExecution(inputs.model, inputs.space)
    losses = []
    for mask_U in ~torch.eye(inputs.space.num_units, dtype=torch.bool):
        with execution.masked(mask_U) as model:
            losses.append(float(token_nll(model, batch_BT).mean()))
    alone_U, metric_U = torch.tensor(losses, dtype=torch.float64), bonsai_metric(inputs)
    assert torch.corrcoef(torch.stack([alone_U, metric_U]))[0, 1] > 0.9
    if unit_kind != "mlp_channel":  # 128 pairs tell 6 groups apart, not 72 channels
        assert alone_U.argmax() == metric_U.argmax()


def test_the_seed_decides_and_the_model_is_left_alone(
    metric_inputs: Callable[..., MetricInputs],
) -> None:
    kinds = ["kv_group", "mlp_channel"]
    inputs = metric_inputs(kinds, BATCHES, seed=3)
    before = {name: value.clone() for name, value in inputs.model.state_dict().items()}
    metric_U = bonsai_metric(inputs)
    for name, value in inputs.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for module in inputs.model.modules():
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__
    torch.manual_seed(11)  # the global generator has no say
    assert torch.equal(bonsai_metric(metric_inputs(kinds, BATCHES, seed=3)), metric_U)
    assert not torch.equal(bonsai_metric(metric_inputs(kinds, BATCHES, seed=4)), metric_U)


def test_no_calibration_data(metric_inputs: Callable[..., MetricInputs]) -> None:
    with pytest.raises(UserError, match="no sequence to measure on"):
        bonsai_metric(metric_inputs(["layer"], []))
