"""Masks of a step, each evaluated on the batch or on a sequence of its own.

Shapes: S mask samples, U units, B sequences, T tokens.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.policy import (
    Antithetic,
    DenseLossControlVariate,
    GradientEstimator,
    LeaveOneOut,
    LinearSurrogate,
    MovingAverageBaseline,
    mask_generator,
)
from pgprune_lightning.training import masked_model
from pgprune_lightning.training.mask_evaluator import MaskEvaluator, MaskGranularity
from pgprune_lightning.training.masked_model import MaskedModel, Objective
from tests.tiny_models import random_tokens
from tests.tiny_runs import TinyRun


@pytest.fixture
def frozen(tiny_run: TinyRun) -> MaskedModel:
    made = MaskedModel(resolve_model_source(str(tiny_run.model)), ["kv_group", "mlp_channel"], 1)
    made.load(dtype="float32", device=torch.device("cpu"), attention="sdpa")
    return made


def combined() -> GradientEstimator:
    return LinearSurrogate(DenseLossControlVariate(LeaveOneOut()))


def evaluated(
    frozen: MaskedModel,
    batch_BT: Tensor,
    mask_granularity: MaskGranularity,
    estimator: GradientEstimator,
    objective: Objective = "cross_entropy",
) -> Any:
    s_U = torch.full((frozen.space.num_units,), 0.6, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    evaluator = MaskEvaluator(num_mask_samples=2, mask_granularity=mask_granularity, loss=objective)
    masks_SU = estimator.draw(s_U, evaluator.num_masks(batch_BT), generator)
    with_dense = estimator.needs_dense_losses
    return evaluator.evaluate(frozen, batch_BT, masks_SU, s_U, with_dense=with_dense)


@pytest.mark.parametrize("objective", ["cross_entropy", "kl_to_dense"])
def test_each_sequence_evaluates_masks_of_its_own(
    frozen: MaskedModel, objective: Objective
) -> None:
    batch_BT = random_tokens(rows=3)
    samples = evaluated(frozen, batch_BT, "sequence", combined(), objective)
    assert (samples.num_texts, samples.masks_per_text) == (3, 2)
    assert len({tuple(mask.tolist()) for mask in samples.masks_SU}) == 6
    expected = [
        frozen.losses_of_masks(batch_BT[text : text + 1], mask_U[None], objective)
        for text, mask_U in zip([0, 0, 1, 1, 2, 2], samples.masks_SU, strict=True)
    ]
    torch.testing.assert_close(samples.losses_S, torch.cat(expected), rtol=0, atol=1e-5)
    dense_B = frozen.token_nll(batch_BT, None).double().mean(dim=1)
    torch.testing.assert_close(samples.dense_losses_S, dense_B[[0, 0, 1, 1, 2, 2]])


@pytest.mark.parametrize("objective", ["cross_entropy", "kl_to_dense"])
def test_the_batch_evaluates_every_mask(frozen: MaskedModel, objective: Objective) -> None:
    batch_BT = random_tokens(rows=3)
    samples = evaluated(frozen, batch_BT, "batch", combined(), objective)
    assert samples.num_texts == 1
    assert samples.losses_S.equal(frozen.losses_of_masks(batch_BT, samples.masks_SU, objective))
    dense = float(frozen.token_nll(batch_BT, None).double().mean())
    assert samples.dense_losses_S.tolist() == pytest.approx([dense] * 2)


def test_opposite_masks_read_the_same_sequence(frozen: MaskedModel) -> None:
    samples = evaluated(frozen, random_tokens(rows=2), "sequence", Antithetic())
    # At 0.6, no unit is dropped by both masks of a pair.
    assert bool((samples.masks_SU[0::2] | samples.masks_SU[1::2]).all())
    assert samples.masks_per_text == 2


class Forwards(Callback):
    """Counts the sequences of each forward pass of the model during training steps."""

    def __init__(self) -> None:
        self.sequences: list[int] = []

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        self.handle = module.masked_model.model.model.register_forward_hook(
            lambda *arguments: self.sequences.append(arguments[-1][0].shape[0])
        )

    def on_train_batch_end(self, *_: Any) -> None:
        self.handle.remove()


@pytest.mark.parametrize(
    ("options", "sequences"),
    [
        ({"estimator": LeaveOneOut()}, [2, 2]),
        ({"mask_granularity": "sequence", "estimator": LeaveOneOut()}, [4]),
        ({"mask_granularity": "sequence", "estimator": combined()}, [4, 2]),
        ({"estimator": DenseLossControlVariate(MovingAverageBaseline())}, [2, 2, 2]),
    ],
    ids=["batch", "sequence", "sequence and dense", "batch and dense"],
)
def test_a_step_takes_these_forward_passes(
    tiny_run: TinyRun, options: dict[str, Any], sequences: list[int]
) -> None:
    """Batches have two sequences, and there are two masks for each text."""
    forwards = Forwards()
    trainer = tiny_run.trainer([forwards], max_steps=1, num_sanity_val_steps=0)
    trainer.fit(tiny_run.module(**options), datamodule=tiny_run.datamodule())
    assert forwards.sequences == sequences


def test_a_step_of_one_mask_a_sequence_is_this(tiny_run: TinyRun) -> None:
    options: dict[str, Any] = {
        "mask_granularity": "sequence",
        "num_mask_samples": 1,
        "estimator": LeaveOneOut(),
    }
    trained, by_hand = tiny_run.module(**options), tiny_run.module(**options)
    tiny_run.trainer(max_steps=1).fit(trained, datamodule=tiny_run.datamodule())
    datamodule = tiny_run.datamodule()
    tiny_run.trainer(max_steps=0, num_sanity_val_steps=0).fit(by_hand, datamodule=datamodule)
    s_U = by_hand.policy.keep_probabilities.detach()
    batch_BT = next(iter(datamodule.train_dataloader()))
    masks_SU = by_hand.estimator.draw(s_U, 2, mask_generator(by_hand.seed, 0, rank=0))
    first, second = (
        by_hand.masked_model.token_nll(batch_BT[row : row + 1], masks_SU[row]).double().mean()
        for row in range(2)
    )
    score_SU = torch.where(masks_SU, 1 / s_U, -1 / (1 - s_U))
    gradient_U = (first - second) * (score_SU[0] - score_SU[1]) / 2
    expected_U = by_hand.feasible_set.project(s_U - by_hand.update.lr * gradient_U)
    found_U = trained.policy.keep_probabilities.detach()
    torch.testing.assert_close(found_U, expected_U, rtol=0, atol=1e-6)
    assert not torch.allclose(found_U, s_U, rtol=0, atol=1e-4)


def test_a_resumed_run_goes_on_with_the_same_fits(tiny_run: TinyRun) -> None:
    def fit(max_steps: int, ckpt_path: Path | None = None) -> Any:
        module = tiny_run.module(
            mask_granularity="sequence", num_mask_samples=1, estimator=combined(), lr=0.001
        )
        trainer = tiny_run.trainer(max_steps=max_steps)
        trainer.fit(module, datamodule=tiny_run.datamodule(), ckpt_path=ckpt_path)
        return trainer

    whole, stopped = fit(6), tiny_run.folder / "stopped.ckpt"
    fit(3).save_checkpoint(stopped)
    resumed = fit(6, stopped)
    expected, found = (trainer.lightning_module.state_dict() for trainer in (whole, resumed))
    assert "estimator.gram_FF" in expected
    assert "estimator.estimator.moments" in expected
    assert expected.keys() == found.keys()
    assert all(value.equal(found[name]) for name, value in expected.items())


@pytest.mark.parametrize(
    ("mask_granularity", "num_mask_samples", "estimator"),
    [
        ("batch", 1, LeaveOneOut()),
        ("sequence", 1, Antithetic()),
        ("batch", 3, LinearSurrogate(Antithetic())),
    ],
)
def test_too_few_masks_are_refused_at_once(
    tiny_run: TinyRun, mask_granularity: str, num_mask_samples: int, estimator: GradientEstimator
) -> None:
    with pytest.raises(UserError, match=f"num_mask_samples: .* given {num_mask_samples}"):
        tiny_run.module(
            mask_granularity=mask_granularity,
            num_mask_samples=num_mask_samples,
            estimator=estimator,
        )


def test_one_sequence_with_one_mask_is_refused_before_the_weights_are_loaded(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masked_model, "open_frozen_model", None)
    module = tiny_run.module(
        mask_granularity="sequence", num_mask_samples=1, estimator=LeaveOneOut()
    )
    with pytest.raises(UserError, match="needs at least 2, given 1"):
        tiny_run.trainer().fit(module, datamodule=tiny_run.datamodule(batch_size=1))
