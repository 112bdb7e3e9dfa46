"""A step is read by the host later, if that waits, and one that is refused leaves nothing behind.

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
from tests.host_reads import HostReads, as_on_accelerator, take_a_step_wrongly_for_granted
from tests.tiny_runs import TinyRun

ESTIMATORS = [
    MovingAverageBaseline(),
    LeaveOneOut(),
    PlainReinforce(),
    Antithetic(),
    DenseLossControlVariate(MovingAverageBaseline()),
    LinearSurrogate(LeaveOneOut()),
]

WITH_MEMORY: list[dict[str, Any]] = [
    {"policy": FreeLogits(), "budget": "per_kind"},
    {"policy": FreeLogits(final_sharpness=3.0), "budget": "parameters"},
    {"policy": StructuredLogits(), "budget": "parameters"},
    {"policy": ExploredLogits(), "budget": "parameters", "masks_per": "sequence"},
    {"policy": ExploredLogits(), "budget": "per_layer"},
    {"update": Adam},
    {"update": partial(ProjectedSGD, momentum=0.9)},
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
@pytest.mark.parametrize(
    "options", [{}, {"loss": "kl_to_dense"}, {"masks_per": "sequence"}], ids=str
)
def test_a_training_step_is_never_waited_for(
    tiny_run: TinyRun,
    monkeypatch: pytest.MonkeyPatch,
    estimator: GradientEstimator,
    options: dict[str, Any],
) -> None:
    module = tiny_run.module(execution="widened", estimator=estimator, **options)
    assert _reads_of_steps(module, tiny_run, monkeypatch) == [[]] * 3


@pytest.mark.parametrize("options", WITH_MEMORY, ids=str)
def test_nor_with_logits_or_a_memory(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """The shift onto the budget, and the ranking of explored masks, are found on the device."""
    module = tiny_run.module(execution="widened", **copy.deepcopy(options))
    assert _reads_of_steps(module, tiny_run, monkeypatch) == [[]] * 3


def _reads_of_steps(
    module: PolicyGradientPruning, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> list[list[str]]:
    """What the host reads from the batch to the update, with the forward passes, in each step."""
    as_on_accelerator(monkeypatch)
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


@pytest.mark.parametrize("options", [*WITH_MEMORY, {"lr_schedule": "cosine"}], ids=str)
def test_the_run_is_the_same_when_steps_are_read_later(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    ends = []
    for later in (False, True):
        if later:
            as_on_accelerator(monkeypatch)
        module = tiny_run.module(execution="widened", **copy.deepcopy(options))
        tiny_run.trainer(max_steps=4).fit(module, datamodule=tiny_run.datamodule())
        ends.append(module.state_dict())
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        # The shift of logits takes as many rounds as it is given, where none is looked at.
        assert torch.allclose(value.double(), ends[1][name].double(), rtol=0, atol=1e-12), name


def test_a_step_is_looked_at_while_the_next_ones_passes_run(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_accelerator(monkeypatch)
    events = []
    losses_of_masks, read = MaskLosses.losses_of_masks, host_reads.HostCopy.read

    def launched(self: MaskLosses, *arguments: Any) -> Tensor:
        events.append("passes")
        return losses_of_masks(self, *arguments)

    def looked_at(self: host_reads.HostCopy) -> bool:
        events.append("look")
        return read(self)

    monkeypatch.setattr(MaskLosses, "losses_of_masks", launched)
    monkeypatch.setattr(host_reads.HostCopy, "read", looked_at)
    module = tiny_run.module()
    trainer = tiny_run.trainer(max_steps=3, val_check_interval=3)
    trainer.fit(module, datamodule=tiny_run.datamodule())
    # The last step is looked at before its mask is validated.
    assert events == ["passes", "passes", "look", "passes", "look", "look"]


@pytest.mark.parametrize("use", ["current_mask", "current_plan", "state_dict"])
def test_nothing_is_made_of_a_step_that_has_not_been_looked_at(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    as_on_accelerator(monkeypatch)
    module = tiny_run.module()
    trainer = tiny_run.trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(module, datamodule=tiny_run.datamodule())
    looks = []
    monkeypatch.setattr(host_reads.HostCopy, "read", lambda self: looks.append(self) is None)
    for _ in range(2):
        getattr(module, use)()
    assert len(looks) == 1


@pytest.mark.parametrize("options", [{}, {"lr_schedule": "cosine"}, {"update": Adam}], ids=str)
@pytest.mark.parametrize("wrong_step", [0, 1, 3])
def test_a_step_that_was_wrongly_taken_for_granted_is_taken_again(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], wrong_step: int
) -> None:
    def end() -> dict[str, Tensor]:
        module = tiny_run.module(estimator=LinearSurrogate(LeaveOneOut()), **options)
        tiny_run.trainer(max_steps=4).fit(module, datamodule=tiny_run.datamodule())
        assert module.global_step == 4
        return dict(module.state_dict())

    right = end()
    as_on_accelerator(monkeypatch)
    steps = take_a_step_wrongly_for_granted(monkeypatch, wrong_step)
    taken = end()
    assert steps == [0, 1, 2, 3]
    for name, value in right.items():
        assert torch.allclose(value.double(), taken[name].double(), rtol=0, atol=1e-12), name


@pytest.mark.parametrize(
    "options",
    [
        *({"estimator": estimator} for estimator in ESTIMATORS),
        {"policy": FreeLogits(final_sharpness=3.0), "budget": "parameters"},
        {"policy": StructuredLogits(), "budget": "parameters", "update": Adam},
        {"policy": ExploredLogits(), "budget": "parameters"},
        {"policy": ExploredLogits(), "round_to": 4},
        {"layer_keep_ratios": (0.3, 0.9)},
    ],
    ids=lambda options: " ".join(
        f"{name}={value if isinstance(value, (str, int, tuple)) else type(value).__name__}"
        for name, value in options.items()
    ),
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("later", [False, True])
def test_a_refused_step_leaves_everything_as_it_was(
    tiny_run: TinyRun,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    value: float,
    later: bool,
) -> None:
    if later:
        as_on_accelerator(monkeypatch)
    states: list[dict[str, Tensor]] = []
    losses_of_masks = MaskLosses.losses_of_masks
    module = tiny_run.module(**copy.deepcopy(options))

    def broken(self: MaskLosses, *arguments: Any) -> Tensor:
        losses_S = losses_of_masks(self, *arguments)
        if len(states) < 3:  # afterwards, a step is launched that is in vain
            states.append(copy.deepcopy(module.state_dict()))
            if len(states) == 3:
                losses_S[1] = value
        return losses_S

    monkeypatch.setattr(MaskLosses, "losses_of_masks", broken)
    with pytest.raises(UserError, match=f"mask sample 1 in step 2 is {value}"):
        tiny_run.trainer().fit(module, datamodule=tiny_run.datamodule())
    if "policy" not in options:
        assert any(name.startswith("estimator.") for name in states[-1])
    for name, before in states[-1].items():
        assert torch.equal(module.state_dict()[name], before), name
    assert not torch.equal(*(state["policy.keep_probabilities"] for state in states[-2:]))
    # A checkpoint would tell a policy of two steps as one of three, where that was found later.
    is_found_later = later and "layer_keep_ratios" not in options
    assert module.is_between_updates != is_found_later
