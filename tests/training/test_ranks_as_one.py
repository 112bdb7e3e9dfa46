"""Two ranks take the steps that one process takes with the samples of both.

Shapes: S mask samples, U units.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from pgprune_lightning.policy import (
    Adam,
    Antithetic,
    DenseLossControlVariate,
    FreeLogits,
    LeaveOneOut,
    LinearSurrogate,
    MovingAverageBaseline,
    NaturalGradient,
    StructuredLogits,
    mask_generator,
)
from tests.tiny_runs import TinyRun
from tests.two_ranks import on_two_ranks, run_two_ranks

STEPS = 4
BATCH_OF_A_RANK = 2
RECIPES: dict[str, dict[str, Any]] = {
    "moving_average": {"estimator": MovingAverageBaseline(window=3)},
    "leave_one_out_logits": {
        "estimator": LeaveOneOut(),
        "policy": FreeLogits(),
        "optimizer": NaturalGradient,
    },
    "wrapped_structured": {
        "estimator": LinearSurrogate(DenseLossControlVariate(LeaveOneOut())),
        "policy": StructuredLogits(free_kinds=["kv_group"], free_after=2),
        "optimizer": Adam,
        "lr": 0.1,
    },
    "antithetic": {"estimator": Antithetic(), "num_mask_samples": 2, "loss": "kl_to_dense"},
}


class Probabilities(Callback):
    """Keeps the probabilities after each step."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.steps.append(pl_module.policy.keep_probabilities.detach().clone())


def _fit(run: TinyRun, name: str, batch_size: int, both: bool, **trainer: Any) -> Tensor:
    kept = Probabilities()
    module = run.module(**({"mask_granularity": "sequence", "num_mask_samples": 1} | RECIPES[name]))
    if both:
        _draw_the_masks_of_both_ranks(module)
    options = {"max_steps": STEPS, "val_check_interval": STEPS} | trainer
    run.trainer([kept], **options).fit(module, datamodule=run.datamodule(batch_size=batch_size))
    return torch.stack(kept.steps)


def _draw_the_masks_of_both_ranks(module: Any) -> None:
    draw = module.estimator.draw

    def draw_both(s_U: Tensor, num_masks: int, _generator: torch.Generator) -> Tensor:
        generators = (mask_generator(module.seed, module.global_step, rank) for rank in (0, 1))
        return torch.cat([draw(s_U, num_masks // 2, generator) for generator in generators])

    module.estimator.draw = draw_both


def _fits_of_a_rank(rank: int, run: TinyRun) -> None:
    steps = {
        name: _fit(run, name, BATCH_OF_A_RANK, both=False, **on_two_ranks()) for name in RECIPES
    }
    torch.save(steps, run.folder / f"rank-{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(
    tiny_model_folder: Path, tiny_texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> TinyRun:
    run = TinyRun(tiny_model_folder, tiny_texts, tmp_path_factory.mktemp("ranks-as-one"))
    run_two_ranks(_fits_of_a_rank, run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_steps_are_those_of_one_process_with_all_samples(two_ranks: TinyRun, name: str) -> None:
    ranks = [torch.load(two_ranks.folder / f"rank-{rank}.pt")[name] for rank in (0, 1)]
    assert ranks[0].equal(ranks[1])
    alone = _fit(two_ranks, name, 2 * BATCH_OF_A_RANK, both=True)
    # Losses of a longer batch differ in the last digits of float32; the steps do not otherwise.
    torch.testing.assert_close(ranks[0], alone, rtol=0, atol=2e-5)
    moved = (alone[-1] - alone[0]).abs().max()
    assert moved > 1e-3
