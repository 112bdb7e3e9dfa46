"""Steps along gradients at a mask: the gradients, the steps, and that the mask is better.

Shapes: U units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization import Initialization, refinement
from pgprune_lightning.initialization.gate_gradients import gradients_at
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.initialization.refinement import refined
from pgprune_lightning.masking import DenseMaskedExecution
from pgprune_lightning.masking.gates import gated
from pgprune_lightning.masking.token_loss import token_nll
from pgprune_lightning.policy import FeasibleSet
from tests.tiny_models import random_tokens

if TYPE_CHECKING:
    from tests.tiny_runs import TinyRun

TOKENS = random_tokens(rows=16)
BOTH_KINDS = ["kv_group", "mlp_channel"]


def test_the_steps_are_those_of_adam_and_the_later_half_is_averaged(
    metric_inputs: Callable[..., MetricInputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the mask is, here its gradient is known; torch's optimizer takes the same steps."""
    inputs = metric_inputs(BOTH_KINDS, [TOKENS])
    num_units = inputs.space.num_units
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(num_units, generator=generator).double() for _ in range(5)]
    gradients = [gradient_U * 1e-5 for gradient_U in gradients]
    left, losses = list(gradients), [2.0, 1.0]
    monkeypatch.setattr(refinement, "gradients_at", lambda *_: left.pop(0)[None])
    monkeypatch.setattr(refinement, "_total_loss", lambda *_: losses.pop(0))
    start_U = torch.randn(num_units, generator=generator, dtype=torch.float64)
    found_U = refined(start_U, inputs, FeasibleSet(inputs.space, 0.5), steps=5)

    expected = torch.nn.Parameter(start_U.clone())
    betas = refinement.MEAN_DECAY, refinement.SQUARE_DECAY
    optimizer = torch.optim.Adam([expected], lr=refinement.STEP_SIZE, betas=betas, eps=1e-300)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    reached = []
    for gradient_U in gradients:
        expected.grad = gradient_U
        optimizer.step()
        schedule.step()
        reached.append(expected.detach().clone())
    torch.testing.assert_close(found_U, torch.stack(reached[2:]).mean(dim=0))


def test_sequences_are_read_in_turn_and_those_that_judge_are_not(
    metric_inputs: Callable[..., MetricInputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = metric_inputs(BOTH_KINDS, [TOKENS[:9], TOKENS[9:]])
    read, judged = [], []

    def gradients(_inputs: MetricInputs, mask_U: Tensor, batch_BT: Tensor) -> Tensor:
        read.append(batch_BT)
        return torch.zeros(len(batch_BT), len(mask_U), dtype=torch.float64)

    def loss(_inputs: MetricInputs, _mask_U: Tensor, tokens_NT: Tensor) -> float:
        judged.append(tokens_NT)
        return 1.0

    monkeypatch.setattr(refinement, "gradients_at", gradients)
    monkeypatch.setattr(refinement, "_total_loss", loss)
    start_U = torch.zeros(inputs.space.num_units, dtype=torch.float64)
    refined(start_U, inputs, FeasibleSet(inputs.space, 0.5), steps=4)
    # 16 sequences: 14 for the steps, of 4 each, and 2.
    assert torch.equal(torch.cat(read), TOKENS[[*range(14), 0, 1]])
    assert all(torch.equal(tokens_NT, TOKENS[14:]) for tokens_NT in judged)


def test_long_work_is_seen(
    metric_inputs: Callable[..., MetricInputs], capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = metric_inputs(BOTH_KINDS, [TOKENS])
    start_U = torch.zeros(inputs.space.num_units, dtype=torch.float64)
    refined(start_U, inputs, FeasibleSet(inputs.space, 0.5), steps=2)
    shown = capsys.readouterr().err
    assert "Refining the start" in shown
    assert "0/2" in shown


def test_gradients_at_a_mask_are_those_of_finite_differences(
    metric_inputs: Callable[..., MetricInputs],
) -> None:
    inputs = metric_inputs(BOTH_KINDS, [TOKENS], dtype=torch.float64)
    mask_U = torch.rand(inputs.space.num_units, generator=torch.Generator().manual_seed(3)) < 0.6
    batch_BT = TOKENS[:1]
    gradients_U = gradients_at(inputs, mask_U, batch_BT)[0]

    def loss(gates_U: Tensor) -> float:
        with torch.no_grad(), gated(inputs.model, inputs.space, gates_U[None]) as model:
            return float(model(batch_BT, labels=batch_BT).loss)

    for kept in (True, False):
        unit = int((mask_U == kept).nonzero()[2])
        step_U = torch.zeros(len(mask_U), dtype=torch.float64)
        step_U[unit] = 1e-2
        gates_U = mask_U.double()
        slope = (loss(gates_U + step_U) - loss(gates_U - step_U)) / 2e-2
        # The token loss is taken in float32.
        assert float(gradients_U[unit]) == pytest.approx(slope, rel=2e-2, abs=5e-4)


def test_the_mask_that_is_found_has_a_lower_loss(
    metric_inputs: Callable[..., MetricInputs],
) -> None:
    inputs = metric_inputs(BOTH_KINDS, [TOKENS[:8], TOKENS[8:]])
    feasible_set = FeasibleSet(inputs.space, 0.5, scope="parameters")
    generator = torch.Generator().manual_seed(0)
    start_U = torch.randn(inputs.space.num_units, generator=generator, dtype=torch.float64)
    found_U = refined(start_U, inputs, feasible_set, steps=8)
    execution = DenseMaskedExecution(inputs.model, inputs.space)

    def loss(ranking_U: Tensor) -> float:
        with execution.masked(feasible_set.deterministic_mask(ranking_U)) as model:
            return float(token_nll(model, TOKENS).mean())

    assert loss(found_U) < loss(start_U) - 0.02


def test_where_nothing_helps_the_metric_stays(
    metric_inputs: Callable[..., MetricInputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = metric_inputs(BOTH_KINDS, [TOKENS])
    feasible_set = FeasibleSet(inputs.space, 0.5)
    start_U = torch.arange(inputs.space.num_units, dtype=torch.float64)
    best_U = feasible_set.deterministic_mask(start_U)
    monkeypatch.setattr(refinement, "STEP_SIZE", 1e3)
    monkeypatch.setattr(
        refinement, "_total_loss", lambda _inputs, mask_U, _tokens: float((mask_U != best_U).sum())
    )
    assert torch.equal(refined(start_U, inputs, feasible_set, steps=3), start_U)


def test_a_run_starts_from_it(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [2.0, 1.0]
    monkeypatch.setattr(refinement, "_total_loss", lambda *_: losses.pop(0))

    def ranking(steps: int) -> Tensor:
        options = Initialization(
            metric="fisher", normalization="per_parameter", num_blocks=16, refine_steps=steps
        )
        module = tiny_run.module(initialization=options, scope="parameters", lr=1e-9)
        tiny_run.trainer(max_steps=1).fit(module, datamodule=tiny_run.datamodule())
        return module.policy.keep_probabilities.detach()

    assert not torch.allclose(ranking(0), ranking(2))


def test_gradients_that_are_not_finite_are_refused(
    metric_inputs: Callable[..., MetricInputs],
) -> None:
    inputs = metric_inputs(["mlp_channel"], [TOKENS])
    inputs.model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(UserError, match=r"refine_steps: a gradient is not finite"):
        refined(
            torch.zeros(inputs.space.num_units, dtype=torch.float64),
            inputs,
            FeasibleSet(inputs.space, 0.5),
            steps=1,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refine_steps": -1}, "0 steps or more"),
        ({"refine_steps": 3, "num_blocks": 1}, "one to judge them by"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Initialization(**options)  # type: ignore[arg-type]


def test_a_plan_is_not_refined() -> None:
    """Recipes with a refined start measure plans, too, and a shared model can start from one."""
    options = Initialization(metric="fisher", refine_steps=1, plan="p")
    assert not options.reads_text
    assert not options.needs_gradients
