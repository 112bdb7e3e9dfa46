"""Where a run's metrics go: a CSV file always, Weights & Biases on request."""

# No `from __future__ import annotations`: the command line reads these types.
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.training.metrics_file import MetricsFile

WANDB_ID_FILE = "wandb_run_id.txt"


@dataclass(frozen=True)
class WandbOptions:
    """How a run appears on Weights & Biases.

    Args:
        mode: `off`; `online`, which needs a login (`wandb login`); or `offline`, which writes into
            the run folder, to be sent later with `wandb sync`.
        project: Project the run belongs to.
        name: Name shown for the run; default: the run folder's name.
        group: Group of runs; resumed offline runs of one folder share it. Default: the id of the
            folder's first run.
        entity: User or team; default: that of the login.
        tags: Labels to filter runs by.
    """

    mode: Literal["off", "online", "offline"] = "off"
    project: str = "pgprune-lightning"
    name: str | None = None
    group: str | None = None
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


def build_loggers(run_dir: Path, wandb: WandbOptions) -> list[Logger]:
    """Make the loggers of a run.

    Args:
        run_dir: The run's folder.
        wandb: W&B options; with mode `off` there is the CSV file alone.
    """
    loggers: list[Logger] = [MetricsFile(run_dir)]
    if wandb.mode != "off":
        loggers.append(_wandb_logger(run_dir, wandb))
    return loggers


@contextmanager
def own_wandb_run() -> Iterator[None]:
    """Close the W&B run that is opened inside; a run that was open before stays so.

    W&B knows one run a process: whoever logs next would write into it.
    """
    before = _open_wandb_run()
    try:
        yield
    except SystemExit as end:
        _close_wandb_run(before, end.code if isinstance(end.code, int) else int(bool(end.code)))
        raise
    except BaseException:
        _close_wandb_run(before, 1)
        raise
    _close_wandb_run(before, 0)


def _open_wandb_run() -> Any:
    # Not imported for this: a run without W&B starts without it.
    return getattr(sys.modules.get("wandb"), "run", None)


def _close_wandb_run(before: Any, status: int) -> None:
    run = _open_wandb_run()
    if run is not None and run is not before:
        run.finish(exit_code=status)


def _wandb_logger(run_dir: Path, options: WandbOptions) -> WandbLogger:
    """Continue the folder's run online; offline, where that is impossible, its group."""
    first_id = _first_run_id(run_dir)
    offline = options.mode == "offline"
    return WandbLogger(
        project=options.project,
        name=options.name or run_dir.name,
        save_dir=run_dir,
        id=secrets.token_hex(4) if offline else first_id,
        group=options.group or first_id,
        entity=options.entity,
        tags=options.tags,
        offline=offline,
        resume="never" if offline else "allow",
        log_model=False,
    )


def _first_run_id(run_dir: Path) -> str:
    """The id of the folder's first run, written before anything is logged."""
    path = run_dir / WANDB_ID_FILE
    if not path.exists():
        write_atomically(path, secrets.token_hex(4).encode())
    return path.read_text()
