"""A step is read by the host once, and one that is refused leaves nothing behind.

Shapes: S mask samples, B sequences, T tokens.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import (
    Adam,
    Antithetic,
    DenseLossControlVariate,
    ExploredLogits,
    FreeLogits,
    GradientEstimator,
    LeaveOneOut,
    LinearSurrogate,
    MovingAverageBaseline,
    PlainReinforce,
    ProjectedSGD,
    StructuredLogits,
    host_reads,
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
    module = tiny_run.module(execution="widened", estimator=estimator, **options)
    assert _reads_of_steps(module, tiny_run, monkeypatch) == [["_local_scalar_dense"]] * 3


@pytest.mark.parametrize(
    "options",
    [
        {"policy": FreeLogits(), "budget": "per_kind"},
        {"policy": FreeLogits(final_sharpness=3.0), "budget": "parameters"},
        {"policy": StructuredLogits(), "budget": "parameters"},
        {"policy": ExploredLogits(), "budget": "parameters", "masks_per": "sequence"},
        {"policy": ExploredLogits(), "budget": "per_layer"},
        {"update": Adam},
        {"update": partial(ProjectedSGD, momentum=0.9)},
    ],
    ids=str,
)
def test_with_logits_or_a_memory_it_is_read_once_too(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """The shift onto the budget, and the ranking of explored masks, are found on the device."""
    module = tiny_run.module(execution="widened", **copy.deepcopy(options))
    assert _reads_of_steps(module, tiny_run, monkeypatch) == [["_local_scalar_dense"]] * 3


def _reads_of_steps(
    module: PolicyGradientPruning, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> list[list[str]]:
    """What the host reads from the batch to the update, with the forward passes, in each step."""
    monkeypatch.setattr(host_reads, "reading_is_free", lambda device: False)
    names = []

    class Watched(PolicyGradientPruning):
        def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
            with HostReads() as reads:
                output = super().training_step(batch, batch_idx)
            names.append(reads.names)
            return output

    module.__class__ = Watched
    tiny_run.trainer(max_steps=3).fit(module, datamodule=tiny_run.datamodule())
    return names


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_refused_step_leaves_policy_and_estimator_as_they_were(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, estimator: GradientEstimator, value: float
) -> None:
    states: list[dict[str, Tensor]] = []
    losses_of_masks = MaskLosses.losses_of_masks
    module = tiny_run.module(estimator=estimator)

    def broken(self: MaskLosses, *arguments: Any) -> Tensor:
        losses_S = losses_of_masks(self, *arguments)
        states.append(copy.deepcopy(module.state_dict()))
        if len(states) == 3:
            losses_S[1] = value
        return losses_S

    monkeypatch.setattr(MaskLosses, "losses_of_masks", broken)
    with pytest.raises(UserError, match=f"mask sample 1 in step 2 is {value}"):
        tiny_run.trainer().fit(module, datamodule=tiny_run.datamodule())
    assert any(name.startswith("estimator.") for name in states[-1])
    for name, before in states[-1].items():
        assert torch.equal(module.state_dict()[name], before), name
    assert not torch.equal(*(state["policy.keep_probabilities"] for state in states[-2:]))
