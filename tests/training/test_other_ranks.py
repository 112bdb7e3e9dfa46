"""Two ranks end together: refused as one, and each in one line where the other is gone."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from pgprune_lightning.training.other_ranks import (
    is_rank_lost,
    rank_lost_message,
    report_lost_children,
)
from tests.held_outputs import Hold
from tests.tiny_commands import Outcome, TinyCommand, refused
from tests.two_ranks import statuses_of_two_ranks

GLOO = (
    "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error "
    "[127.0.0.1]:9118: Connection reset by peer. This is typically caused by a remote worker "
    "hanging or bugs in the application. GLHF!"
)
WHAT_TO_DO = ("Another rank has failed or was killed", "start all ranks again with --resume auto")


def _fits_of_a_rank(rank: int, config: str, said: str, owner: int) -> None:
    """Refused where a process owns the folder; then one in which rank 1 is killed at a step."""
    from pgprune_lightning import run
    from pgprune_lightning.cli import main
    from pgprune_lightning.training import PolicyGradientPruning

    os.environ["TORCHELASTIC_RUN_ID"] = "test"
    run.SECONDS_TO_WAIT = 0.1
    training_step = PolicyGradientPruning.training_step

    def step(self: PolicyGradientPruning, batch: Any, batch_idx: int) -> Any:
        if rank == 1 and self.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return training_step(self, batch, batch_idx)

    PolicyGradientPruning.training_step = step  # type: ignore[method-assign]
    ranks = ("--trainer.devices=2", "--trainer.strategy=ddp")
    often = ("--checkpoint.every_n_train_steps=1", "--resume=auto")
    for fit in ("refused", "killed"):
        with Path(f"{said}-{fit}-{rank}").open("w", buffering=1) as sys.stderr:
            status = main(["fit", "--config", config, *ranks, *often])
            sys.stderr.write(f"{status}\n")
        if fit == "refused" and rank == 0:
            os.kill(owner, signal.SIGKILL)
    sys.exit(status)


@pytest.mark.slow
def test_ranks_end_together(tiny_command: TinyCommand, tmp_path: Path, hold: Hold) -> None:
    run_dir, said = tiny_command.run_dir, tmp_path / "said"
    run_dir.mkdir()
    owner = hold(run_dir)
    ends = statuses_of_two_ranks(_fits_of_a_rank, str(tiny_command.config), str(said), owner.pid)
    assert ends == [1, -signal.SIGKILL]

    for rank in (0, 1):
        *lines, status = Path(f"{said}-refused-{rank}").read_text().splitlines()
        assert status == "2"
        assert len(lines) == 2 - rank, "rank 0 says besides that it waits"
        refused(Outcome(2, "", lines[-1]), f"in use by process {owner.pid}")

    *_, last, _ = Path(f"{said}-killed-0").read_text().splitlines()
    assert last.startswith("error: this rank has lost the others ("), last
    assert all(phrase in last for phrase in WHAT_TO_DO), last
    assert torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError(GLOO), True),
        (torch.distributed.DistNetworkError("Connection reset by peer"), True),
        (torch.distributed.DistStoreError("Timed out after 1801 seconds waiting"), True),
        (torch.distributed.DistBackendError("NCCL error: ncclRemoteError: A call failed"), True),
        (torch.distributed.DistBackendError("NCCL error: ncclInvalidUsage"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_only_what_another_rank_causes_counts(error: RuntimeError, is_lost: bool) -> None:
    assert is_rank_lost(error) == is_lost


def test_the_message_is_short() -> None:
    said = rank_lost_message(GLOO)
    assert "others (Read error [127.0.0.1]:9118: Connection reset by peer). Another" in said


def test_a_rank_that_lightning_has_started_is_missed_in_our_words(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It kills the others then, which may be in the midst of a long step."""
    report_lost_children()
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    child.wait()
    observer = _ChildProcessObserver(main_pid=0, child_processes=[child])
    monkeypatch.setattr(observer, "_terminate_all", lambda: None)
    logger = logging.getLogger("lightning.fabric")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    monkeypatch.setattr(logger, "propagate", False)
    assert observer._run()
    (said,) = caplog.messages
    assert f"error: this rank has lost the others (Child process with PID {child.pid}" in said
    assert "terminated with code 3). " in said
    assert all(phrase in said for phrase in WHAT_TO_DO)
