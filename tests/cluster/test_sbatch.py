"""The batch script, with commands in Slurm's place that write down how they were called."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BATCH = ROOT / "configs" / "cluster" / "slurm.sbatch"


def _submitted(folder: Path, *options: str, status: int = 0, **environment: str) -> tuple[str, int]:
    """What was called, a line each, and how the script ended."""
    called = folder / "called"
    for name, ends in (("srun", f"exit {status}"), ("scontrol", ""), ("squeue", "echo $STATE")):
        command = folder / name
        command.write_text(f'#!/bin/sh\necho "{name} $*" >>{shlex.quote(str(called))}\n{ends}\n')
        command.chmod(0o755)
    slurm = {"SLURM_JOB_NAME": "prune", "SLURM_JOB_ID": "7", "STATE": "RUNNING"}
    ended = subprocess.run(
        ["bash", BATCH, *options],
        env={"PATH": f"{folder}:{os.environ['PATH']}"} | slurm | environment,
        cwd=ROOT,
        check=False,
    )
    return called.read_text() if called.exists() else "", ended.returncode


def test_a_run_is_started_as_its_options_say(tmp_path: Path) -> None:
    called, status = _submitted(tmp_path, "--config", "a.yaml", PYTHON="python9")
    assert called == (
        "srun --wait 60 python9 -m pgprune_lightning fit --config configs/overlays/cluster.yaml "
        "--config a.yaml --trainer.num_nodes 1 --trainer.devices 1 --trainer.strategy auto "
        "--run_dir runs/prune-7 --resume auto\n"
    )
    assert status == 0


def test_many_ranks_are_told_of_one_another(tmp_path: Path) -> None:
    called, _ = _submitted(tmp_path, SLURM_JOB_NUM_NODES="2", SLURM_NTASKS_PER_NODE="4")
    assert "--trainer.num_nodes 2 --trainer.devices 4 --trainer.strategy ddp" in called


@pytest.mark.parametrize(
    ("status", "state", "requeues"),
    [
        (75, "RUNNING", True),
        (75, "COMPLETING", False),  # cancelled, or requeued by Slurm itself
        (75, "", False),
        (0, "RUNNING", False),
        (2, "RUNNING", False),
        (137, "RUNNING", False),
    ],
)
def test_only_what_was_stopped_and_saved_is_requeued(
    tmp_path: Path, status: int, state: str, requeues: bool
) -> None:
    called, ended = _submitted(tmp_path, status=status, STATE=state)
    assert ("scontrol requeue 7\n" in called) == requeues
    assert ended == status


def test_a_task_takes_its_line_and_its_folder(tmp_path: Path) -> None:
    array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}
    sweep = {"SWEEP": "configs/cluster/sweep.txt", "RUNS": str(tmp_path)}
    called, _ = _submitted(tmp_path, "--config", "a.yaml", **array, **sweep)
    assert "--config a.yaml --model.update.lr 0.004 --seed_everything 0 --trainer" in called
    assert f"--run_dir {tmp_path}/prune-5-3 " in called


@pytest.mark.parametrize("task", ["", "5"])
def test_a_sweep_without_such_a_line_is_not_started(tmp_path: Path, task: str) -> None:
    array = {"SLURM_ARRAY_TASK_ID": task} if task else {}
    assert _submitted(tmp_path, SWEEP="configs/cluster/sweep.txt", **array) == ("", 2)
