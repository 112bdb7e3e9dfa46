"""Ranks that no longer know the same are found out, and both end with the same error."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import RankAgreement
from pgprune_lightning.errors import UserError
from tests.tiny_runs import TinyRun
from tests.two_ranks import on_two_ranks, run_two_ranks


class Disturb(Callback):
    """Changes a probability of one rank by its last bit."""

    def __init__(self, rank: int | None) -> None:
        self.rank = rank

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == 3:
            s_U = pl_module.policy.keep_probabilities.data
            s_U[1] = torch.nextafter(s_U[1], s_U[1] + 1)


def _fits_of_a_rank(rank: int, run: TinyRun) -> None:
    said = {}
    for disturbed in (None, 1):
        trainer = run.trainer(
            [Disturb(disturbed), RankAgreement(every_n_steps=2)], max_steps=5, **on_two_ranks()
        )
        try:
            trainer.fit(run.module(), datamodule=run.datamodule())
        except UserError as error:
            said[disturbed] = str(error)
        said["steps", disturbed] = trainer.global_step
    torch.save(said, run.folder / f"{rank}.pt")


@pytest.mark.slow
def test_a_bit_that_differs_ends_the_run_on_all_ranks(
    tiny_model_folder: Path, tiny_texts: Path, tmp_path: Path
) -> None:
    run = TinyRun(tiny_model_folder, tiny_texts, tmp_path)
    run_two_ranks(_fits_of_a_rank, run)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    assert None not in first  # undisturbed, it goes through
    assert first["steps", None] == 5
    assert first["steps", 1] == 4
    assert "policy.keep_probabilities on rank 1 of 2" in first[1]
    assert "step 2 or before" in first[1]


def test_a_check_every_no_steps_is_refused() -> None:
    with pytest.raises(UserError, match="every_n_steps"):
        RankAgreement(every_n_steps=0)


def test_one_rank_is_not_checked(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callbacks.rank_agreement._hash", pytest.fail)
    tiny_run.fit([RankAgreement(every_n_steps=1)])
