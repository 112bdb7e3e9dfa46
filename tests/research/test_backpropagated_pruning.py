"""Learning by back-propagation: its gradient, its step, and that it leaves the weights alone."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import callbacks
from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization import Initialization
from pgprune_lightning.policy import PlainReinforce, shift_logits
from research.backpropagation import (
    BackpropagatedPruning,
    GateDraw,
    GumbelSoftmax,
    StraightThrough,
)
from tests.policy_points import is_feasible
from tests.tiny_runs import TinyRun, grouped

SAMPLE = StraightThrough("sample")


def module(tiny_run: TinyRun, **options: Any) -> BackpropagatedPruning:
    defaults = {
        "base_model": str(tiny_run.model),
        "keep_ratio": 0.6,
        "lr": 0.05,
        "num_mask_samples": 1,
        "fill": True,
        "initialization": Initialization(num_blocks=8),
        "dtype": "float32",
    }
    return BackpropagatedPruning(**grouped(defaults | options))


def fit(tiny_run: TinyRun, fitted: BackpropagatedPruning, **options: Any) -> BackpropagatedPruning:
    tiny_run.trainer(**options).fit(fitted, datamodule=tiny_run.datamodule())
    return fitted


def test_the_first_step_is_that_of_its_definition(tiny_run: TinyRun) -> None:
    """The budget's mask is run; its gate gradient, by finite differences, is taken for dL/ds."""
    start = fit(tiny_run, module(tiny_run), max_steps=0, num_sanity_val_steps=0)
    batch_BT = next(iter(start.trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
    s_U = start.policy.keep_probabilities.detach().clone()
    mask_U = start.current_mask()
    losses_S, gradient_U = start._losses_and_gradient(batch_BT, s_U)
    assert losses_S.item() == pytest.approx(
        start.masked_model.token_nll(batch_BT, mask_U).mean().item(), rel=1e-5
    )

    trained = fit(tiny_run, module(tiny_run), max_steps=1)
    # Adam's first step is lr times the sign of the gradient, which the shift does not change.
    price = _price(start, s_U, gradient_U)
    logits_U = s_U.logit() - 0.05 * (gradient_U - price).sign()
    expected_U = shift_logits(logits_U, start.feasible_set).sigmoid()
    torch.testing.assert_close(
        trained.policy.keep_probabilities.detach(), expected_U, rtol=1e-6, atol=1e-9
    )
    assert is_feasible(start.feasible_set, trained.policy.keep_probabilities)


def _price(start: BackpropagatedPruning, s_U: Tensor, gradient_U: Tensor) -> Tensor:
    """What a unit of cost is worth: where all cost 1, the weighted mean gradient of the kind."""
    price_U = torch.zeros_like(s_U)
    for kind in start.space.kinds:
        units = start.space.units_of(kind)
        weights = s_U[units] * (1 - s_U[units])
        price_U[units] = (weights * gradient_U[units]).sum() / weights.sum()
    return price_U


@pytest.mark.parametrize("gates", [StraightThrough(), SAMPLE, GumbelSoftmax()])
def test_it_learns_and_no_weight_does(
    tiny_run: TinyRun, parameter_bytes: Callable[[Any], bytes], gates: GateDraw
) -> None:
    fitted = module(tiny_run, gates=gates)
    fit(tiny_run, fitted, max_steps=0, num_sanity_val_steps=0)
    before, start_U = parameter_bytes(fitted.masked_model.model), fitted.logits_U.detach().clone()
    fit(tiny_run, fitted, max_steps=3)
    assert not torch.equal(fitted.logits_U, start_U)
    model = fitted.masked_model.model
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert parameter_bytes(model) == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_layers_that_are_protected_stay(tiny_run: TinyRun) -> None:
    fitted = fit(tiny_run, module(tiny_run, protected_layers=[0], gates=SAMPLE), max_steps=3)
    first_U = torch.zeros(fitted.space.num_units, dtype=torch.bool)
    for group in fitted.space.groups:
        if group.layer == 0:
            first_U[group.start : group.end] = True
    assert bool((fitted.policy.keep_probabilities[first_U] == 1).all())


def test_a_resumed_run_equals_an_uninterrupted_one(tiny_run: TinyRun) -> None:
    options = {"gates": SAMPLE, "num_mask_samples": 2}
    whole = fit(tiny_run, module(tiny_run, **options))
    trainer = tiny_run.trainer(max_steps=2)
    trainer.fit(module(tiny_run, **options), datamodule=tiny_run.datamodule())
    path = tiny_run.folder / "half.ckpt"
    trainer.save_checkpoint(path)
    resumed = module(tiny_run, **options)
    tiny_run.trainer().fit(resumed, datamodule=tiny_run.datamodule(), ckpt_path=path)
    assert resumed.global_step == whole.global_step == 4
    assert torch.equal(resumed.logits_U, whole.logits_U)
    assert torch.equal(resumed.policy.keep_probabilities, whole.policy.keep_probabilities)


def test_a_resumed_run_goes_on_with_the_clock(tiny_run: TinyRun) -> None:
    trainer = tiny_run.trainer(max_steps=2)
    trainer.fit(module(tiny_run, seconds=1e6), datamodule=tiny_run.datamodule())
    path = tiny_run.folder / "half.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    assert saved["elapsed_seconds"] > 0
    torch.save(saved | {"elapsed_seconds": 1e6}, path)
    resumed = module(tiny_run, seconds=1e6)
    tiny_run.trainer().fit(resumed, datamodule=tiny_run.datamodule(), ckpt_path=path)
    assert resumed.global_step == 3


def test_it_ends_with_its_time_and_validates_what_it_has(tiny_run: TinyRun) -> None:
    fitted = module(tiny_run, seconds=1e-3, lr_schedule="cosine")
    validation = callbacks.PerplexityValidation()
    trainer = tiny_run.trainer([validation], max_steps=50, val_check_interval=50)
    trainer.fit(fitted, datamodule=tiny_run.datamodule())
    assert fitted.global_step == 1
    assert math.isfinite(float(trainer.callback_metrics["val/perplexity"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_factors": {"mlp_channel": 0.1}}, "lr_factors: back-propagation uses neither"),
        ({"estimator": PlainReinforce()}, "estimator, .*: back-propagation uses neither"),
        ({"num_mask_samples": 2}, "num_mask_samples: the budget's mask is the same in all 2"),
        ({"seconds": 0.0}, "seconds: must be above 0"),
        (
            {"loss": "kl_to_dense"},
            "objective.loss: back-propagation is for comparison with cross_entropy",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    tiny_run: TinyRun, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        module(tiny_run, **options)
