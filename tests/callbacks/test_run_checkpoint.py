"""What lies in the folder of checkpoints at every moment of a save."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from callbacks import RunCheckpoint, run_checkpoint
from pgprune_lightning.policy import FreeProbabilities

if TYPE_CHECKING:
    from pgprune_lightning.policy import FeasibleSet
    from tests.tiny_runs import TinyRun


def test_a_run_killed_after_its_last_save_leaves_no_more_copies_than_it_keeps(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is finished: resumed, it does nothing, and would not drop them later."""
    folder, write = tiny_run.folder / "checkpoints", run_checkpoint.write_atomically
    copies: list[int] = []

    def recording(path: Path, content: bytes) -> None:
        write(path, content)
        copies.append(len(list(folder.glob("step=*.ckpt"))))

    monkeypatch.setattr(run_checkpoint, "write_atomically", recording)
    checkpoint = RunCheckpoint(str(tiny_run.folder), every_n_train_steps=1, keep=2)
    tiny_run.fit([checkpoint], max_steps=4, enable_checkpointing=True)
    assert copies == [1, 2, 2, 2, 2]
    assert (folder / "last.ckpt").read_bytes() == (folder / "step=00000004.ckpt").read_bytes()


def test_a_run_that_breaks_off_within_a_step_is_saved_as_it_was_before(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, project = tiny_run.fit(max_steps=4), FreeProbabilities.project

    def broken(self: FreeProbabilities, feasible_set: FeasibleSet, step: int) -> None:
        project(self, feasible_set, step)
        if step == 3:
            raise RuntimeError("no memory is left")

    checkpoint = RunCheckpoint(str(tiny_run.folder), every_n_train_steps=100)
    monkeypatch.setattr(FreeProbabilities, "project", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        tiny_run.fit([checkpoint], max_steps=4, enable_checkpointing=True)
    monkeypatch.undo()
    saved = tiny_run.folder / "checkpoints" / "last.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == 2
    resumed = tiny_run.module()
    tiny_run.trainer(max_steps=4).fit(resumed, datamodule=tiny_run.datamodule(), ckpt_path=saved)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
