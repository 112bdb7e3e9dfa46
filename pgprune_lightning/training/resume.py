"""Which checkpoint a run goes on from: the newest of its folder that loads, or the one named."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pgprune_lightning.errors import UserError
from pgprune_lightning.training.checkpoint_file import read_checkpoint
from pgprune_lightning.training.metrics_file import METRICS_FILE, read_metrics

CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"


def find_checkpoint(resume: str, run_dir: Path) -> Path | None:
    """Find what `--resume` asks for.

    Args:
        resume: `never`; `auto`, the newest checkpoint of the folder that loads; or a checkpoint.
        run_dir: The run's folder.

    Returns:
        The checkpoint; None for a run that starts.

    Raises:
        UserError: If the checkpoint named cannot be read, or if the folder holds checkpoints or
            steps of a run and no checkpoint loads.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return _newest(run_dir)
    read_checkpoint(resume)
    return Path(resume)


def _newest(run_dir: Path) -> Path | None:
    # The last one first: copies of later steps are what a run left that was resumed before them.
    candidates = sorted(
        (run_dir / CHECKPOINTS).glob("*.ckpt"),
        key=lambda path: (path.name == LAST, path.name),
        reverse=True,
    )
    for path in candidates:
        try:
            read_checkpoint(path)
        except UserError as error:
            rank_zero_warn(f"passed over. {error}", category=UserWarning)
        else:
            return path
    found = "none of its checkpoints loads" if candidates else "its checkpoints are gone"
    if candidates or took_steps(run_dir):
        raise UserError(
            f"resume: {run_dir} holds a run, but {found}, and starting anew would lose it. Bring "
            "a checkpoint back, or start anew with --resume never and another --run_dir or "
            "--existing_run move_aside."
        )
    return None


def took_steps(run_dir: Path) -> bool:
    """Whether there is more than the start of a run, before whose first step is a checkpoint."""
    if (run_dir / "summary.json").exists():
        return True
    path = run_dir / METRICS_FILE
    try:
        return any(int(row["step"]) > 0 for row in read_metrics(path).rows)
    except OSError:
        return False
    except UserError:
        return path.stat().st_size > 0  # damaged, and so of steps for all we know
