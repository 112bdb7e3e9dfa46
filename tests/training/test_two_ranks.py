"""Two processes learn one policy: every sample of both counts, and both know the same.

Shapes: S mask samples of a rank, R of both, U units, B sequences, T tokens.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pgprune_lightning.policy import (
    DenseLossControlVariate,
    LeaveOneOut,
    LinearSurrogate,
    mask_generator,
)
from tests.tiny_runs import TinyRun
from tests.two_ranks import on_two_ranks, run_two_ranks

STEPS = 3
RECIPES: dict[str, dict[str, Any]] = {
    "leave-one-out": {"estimator": LeaveOneOut()},
    "surrogate": {"estimator": LinearSurrogate(DenseLossControlVariate(LeaveOneOut()))},
}
SEQUENCES: dict[str, Any] = {"mask_granularity": "sequence", "num_mask_samples": 1, "lr": 0.002}


def _fits_of_a_rank(rank: int, run: TinyRun) -> None:
    from lightning.pytorch import Callback

    from callbacks import TrainingProgress

    class Recorder(Callback):
        def on_train_batch_start(
            self, trainer: Any, module: Any, batch: Tensor, batch_idx: int
        ) -> None:
            s_U = module.policy.keep_probabilities.detach().clone()
            steps.append({"before": s_U, "batch": batch.clone()})

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            s_U = module.policy.keep_probabilities.detach().clone()
            steps[-1] |= {"after": s_U, "losses": outputs["losses"].clone()}

    for name, options in RECIPES.items():
        steps: list[dict[str, Tensor]] = []
        trainer = run.trainer(
            [Recorder(), TrainingProgress()],
            max_steps=STEPS,
            val_check_interval=STEPS,
            enable_progress_bar=True,
            **on_two_ranks(),
        )
        module = run.module(**SEQUENCES, **options)
        trainer.fit(module, datamodule=run.datamodule())
        state = module.state_dict()
        torch.save({"steps": steps, "state": state}, run.folder / f"{name}-{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(
    tiny_model_folder: Path, tiny_texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> TinyRun:
    run = TinyRun(tiny_model_folder, tiny_texts, tmp_path_factory.mktemp("two-ranks"))
    run_two_ranks(_fits_of_a_rank, run)
    return run


def _recorded(run: TinyRun, name: str) -> list[dict[str, Any]]:
    return [torch.load(run.folder / f"{name}-{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_both_ranks_know_the_same(two_ranks: TinyRun, name: str) -> None:
    first, second = _recorded(two_ranks, name)
    assert first["state"].keys() == second["state"].keys()
    assert all(value.equal(second["state"][key]) for key, value in first["state"].items())
    for ours, theirs in zip(first["steps"], second["steps"], strict=True):
        assert not ours["batch"].equal(theirs["batch"])
        assert not ours["losses"].equal(theirs["losses"])
    assert len(first["steps"]) == STEPS


@pytest.mark.slow
def test_a_step_is_that_of_all_samples_of_both(two_ranks: TinyRun) -> None:
    """Leave-one-out over the four masks of two ranks with two sequences each, by hand."""
    ranks = _recorded(two_ranks, "leave-one-out")
    module = two_ranks.module(**SEQUENCES)
    trainer = two_ranks.trainer(max_steps=0, num_sanity_val_steps=0)
    trainer.fit(module, datamodule=two_ranks.datamodule())
    for step in range(STEPS):
        s_U = ranks[0]["steps"][step]["before"]
        masks_RU = torch.cat(
            [
                torch.rand(
                    (2, len(s_U)),
                    dtype=torch.float64,
                    generator=mask_generator(module.seed, step, rank),
                )
                < s_U
                for rank in (0, 1)
            ]
        )
        batch_RT = torch.cat([rank["steps"][step]["batch"] for rank in ranks])
        losses_R = torch.stack(
            [
                module.masked_model.token_nll(batch_RT[row : row + 1], masks_RU[row]).mean()
                for row in range(4)
            ]
        ).double()
        advantages_R = losses_R - (losses_R.sum() - losses_R) / 3
        gradient_U = advantages_R @ torch.where(masks_RU, 1 / s_U, -1 / (1 - s_U)) / 4
        expected_U = module.feasible_set.project(s_U - module.update.lr * gradient_U)
        after_U = ranks[0]["steps"][step]["after"]
        torch.testing.assert_close(after_U, expected_U, rtol=0, atol=1e-6)
        assert not torch.allclose(after_U, s_U, rtol=0, atol=1e-4)
