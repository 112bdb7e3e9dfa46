"""A step is read by the host once, and one that is refused leaves nothing behind.

Shapes: S mask samples, B sequences, T tokens.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import (
    Antithetic,
    DenseLossControlVariate,
    GradientEstimator,
    LeaveOneOut,
    LinearSurrogate,
    MovingAverageBaseline,
    PlainReinforce,
    projection,
)
from pgprune_lightning.training.mask_losses import MaskLosses
from pgprune_lightning.training.pruning_module import PolicyGradientPruning
from tests.host_reads import HostReads
from tests.tiny_runs import TinyRun

ESTIMATORS = [
    MovingAverageBaseline(),
    LeaveOneOut(),
    PlainReinforce(),
    Antithetic(),
    DenseLossControlVariate(MovingAverageBaseline()),
    LinearSurrogate(LeaveOneOut()),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
@pytest.mark.parametrize(
    "options", [{}, {"loss": "kl_to_dense"}, {"masks_per": "sequence"}], ids=str
)
def test_a_training_step_is_read_once(
    tiny_run: TinyRun,
    monkeypatch: pytest.MonkeyPatch,
    estimator: GradientEstimator,
    options: dict[str, Any],
) -> None:
    """From the batch to the update, with the forward passes, where no mask goes to the host."""
    monkeypatch.setattr(projection, "_reading_is_free", lambda device: False)
    names = []

    class Watched(PolicyGradientPruning):
        def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
            with HostReads() as reads:
                output = super().training_step(batch, batch_idx)
            names.append(reads.names)
            return output

    module = tiny_run.module(execution="widened", estimator=estimator, **options)
    module.__class__ = Watched
    tiny_run.trainer(max_steps=3).fit(module, datamodule=tiny_run.datamodule())
    assert names == [["_local_scalar_dense"]] * 3


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_refused_step_leaves_policy_and_estimator_as_they_were(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, estimator: GradientEstimator, value: float
) -> None:
    states: list[dict[str, Tensor]] = []
    of_masks = MaskLosses.of_masks
    module = tiny_run.module(estimator=estimator)

    def broken(self: MaskLosses, *arguments: Any) -> Tensor:
        losses_S = of_masks(self, *arguments)
        states.append(copy.deepcopy(module.state_dict()))
        if len(states) == 3:
            losses_S[1] = value
        return losses_S

    monkeypatch.setattr(MaskLosses, "of_masks", broken)
    with pytest.raises(UserError, match=f"mask sample 1 in step 2 is {value}"):
        tiny_run.trainer().fit(module, datamodule=tiny_run.datamodule())
    assert any(name.startswith("estimator.") for name in states[-1])
    for name, before in states[-1].items():
        assert torch.equal(module.state_dict()[name], before), name
    assert not torch.equal(*(state["policy.keep_probabilities"] for state in states[-2:]))
