"""What lies in the folder of checkpoints at every moment of a save."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from callbacks import RunCheckpoint, run_checkpoint

if TYPE_CHECKING:
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
