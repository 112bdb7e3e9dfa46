"""Checkpoints: what they hold, which one a run goes on from, and how they get to the disk.

They are written whole or not at all, and a full disk does not end the run.
"""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.errors import UserError
from pgprune_lightning.plan import BaseModel
from pgprune_lightning.policy import MaskPolicy
from pgprune_lightning.training.metrics_file import METRICS_FILE, read_metrics

CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"
_POLICY = "policy."
_VERSION = 1
_NEEDED = ("state_dict", "global_step", "loops", "optimizer_states", "callbacks")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint: tensors and primitives only, every byte checked.

    Args:
        path: A checkpoint that a run has written.

    Returns:
        Its content, on the CPU.

    Raises:
        UserError: If the file is missing, damaged, or no checkpoint of this program.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"checkpoint: there is no file {str(path)!r}. A run keeps its last checkpoint as "
            "RUN_DIR/checkpoints/last.ckpt."
        )
    checkpoint = read_archive(path)
    _check_content(checkpoint, path)
    content: dict[str, Any] = checkpoint
    return content


def read_archive(path: Path) -> Any:
    """Read what `torch.save` wrote: tensors and primitives only, every byte checked.

    Args:
        path: The file.

    Returns:
        Its content, on the CPU.

    Raises:
        UserError: If it cannot be read, or a byte of it has changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not look at the checksums it writes
        if damaged is not None:
            raise EOFError(f"checksum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        *(OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError),
        *(zipfile.BadZipFile, NotImplementedError, KeyError, IndexError),
    ) as error:
        raise UserError(
            f"checkpoint: {path} is damaged and cannot be read. Go on from another checkpoint of "
            f"the run, in {path.parent}, or start anew."
        ) from error


def _check_content(checkpoint: Any, path: Path) -> None:
    try:
        checkpoint["state_dict"][_POLICY + "keep_probabilities"]  # every policy has them
        for name in ("fingerprint", "source"):  # what ties it to a model; read when it is restored
            checkpoint["base_model"][name]
        for name in _NEEDED:
            checkpoint[name]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"checkpoint: {path} holds no pruning policy; give a checkpoint that this program "
            "wrote."
        ) from error
    version = checkpoint.get("checkpoint_version", _VERSION)
    if version != _VERSION:
        raise UserError(
            f"checkpoint: {path} has version {version!r}; this program reads version {_VERSION}. "
            "Go on with the release that wrote it, or start anew."
        )


def read_policy(ckpt_path: str | Path) -> dict[str, Tensor]:
    """Read the state of a checkpoint's policy.

    Args:
        ckpt_path: A checkpoint that a run has written.

    Returns:
        Its parameters and buffers, on the CPU; `keep_probabilities`, (U,), float64, is one of them.

    Raises:
        UserError: If the file is missing, damaged, or no checkpoint of this program.
    """
    return {
        name.removeprefix(_POLICY): tensor
        for name, tensor in read_checkpoint(ckpt_path)["state_dict"].items()
        if name.startswith(_POLICY)
    }


def check_checkpoint(ckpt_path: str | Path, policy: MaskPolicy) -> None:
    """Refuse the checkpoint of a policy over other units, or of another kind.

    Args:
        ckpt_path: The checkpoint.
        policy: The prepared policy that is to take its state.

    Raises:
        UserError: If it is missing, damaged or of another policy.
    """
    state, expected = read_policy(ckpt_path), policy.state_dict()
    found, num_units = (len(s["keep_probabilities"]) for s in (state, expected))
    config = "Go on with the config of the run that wrote it, RUN_DIR/config.yaml."
    if found != num_units:
        raise UserError(
            f"checkpoint: {ckpt_path} holds a policy over {found} units, but model.base_model and "
            f"model.units.kinds give {num_units}. {config}"
        )
    if {name: t.shape for name, t in state.items()} != {n: t.shape for n, t in expected.items()}:
        raise UserError(
            f"checkpoint: {ckpt_path} holds another policy than this model.policy, "
            f"{type(policy).__name__}: its state is {', '.join(state)}. {config}"
        )


def describe_run(checkpoint: dict[str, Any], base_model: BaseModel, update: str) -> None:
    """Write into a checkpoint which model its policy is learned on, and by which update."""
    checkpoint["checkpoint_version"] = _VERSION
    checkpoint["base_model"] = asdict(base_model)
    checkpoint["update"] = update


def check_run(
    checkpoint: dict[str, Any], base_model: BaseModel, update: str, state: dict[str, Tensor]
) -> None:
    """Refuse the checkpoint of a policy that was learned on another model, or in another way.

    Args:
        checkpoint: Its content.
        base_model: The model of this run.
        update: Name of its update.
        state: The state of its policy and estimator.

    Raises:
        UserError: If it was.
    """
    learned_on = checkpoint["base_model"]
    if learned_on["fingerprint"] != base_model.fingerprint:
        raise UserError(
            f"checkpoint: the policy was learned on {learned_on['source']!r}, whose weights are "
            f"not those of {base_model.source!r}. Go on with the model of its run."
        )
    found = {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}
    if found != {name: tensor.shape for name, tensor in state.items()}:
        raise UserError(
            "checkpoint: it was learned with another model.estimator or model.policy: its state "
            f"is {', '.join(found)}. Go on with the config of its run, RUN_DIR/config.yaml."
        )
    if checkpoint.get("update", update) != update:
        raise UserError(
            f"checkpoint: it was learned with model.update.optimizer {checkpoint['update']}, not "
            f"{update}. Go on with the config of its run, RUN_DIR/config.yaml."
        )


def place_loops(checkpoint: dict[str, Any]) -> None:
    """Let a run that goes on count the steps that were taken, and validate if that is due.

    Lightning's own counters say in which hook a checkpoint was saved. One of `on_train_batch_end`
    skips the validation of its step, which a kill may have broken off; one of an error counts
    the batch that failed, and shifts all later validations.
    """
    loops = checkpoint["loops"].get("fit_loop")
    if loops is None:
        return
    step = checkpoint["global_step"]
    batches = dict.fromkeys(("ready", "started", "processed", "completed"), step)
    loops["epoch_loop.batch_progress"] |= {"total": batches, "current": dict(batches)}
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = step
    # A validation counts as begun where its first batch has started and has not been processed.
    begun = int(checkpoint.get("validation_due", False))
    validation = {"ready": begun, "started": begun, "processed": 0, "completed": 0}
    loops["epoch_loop.val_loop.batch_progress"] |= {
        "total": validation,
        "current": dict(validation),
    }


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


class CrashSafeCheckpointIO(CheckpointIO):
    """Writes beside the target and renames; reads tensors and primitives, and runs no pickled code.

    Lightning's own stages in the temporary folder and moves: from another file system a kill leaves
    a part of a file where the last good one was.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        """Why the last checkpoint could not be written; None if it was."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; where that fails, say so once and let the run go on.

        An error here would end one rank of many, and leave the others waiting for it.
        """
        del storage_options
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            write_atomically(Path(path), content.getvalue())
        except UserError as error:
            if self.failure is None:
                warnings.warn(
                    f"no checkpoint: {error} The run goes on, and tries again at the next; the "
                    "last one that was written stays.",
                    stacklevel=2,
                )
            self.failure = str(error)
            return
        if self.failure is not None:
            warnings.warn(f"checkpoints are written again: {path}.", stacklevel=2)
        self.failure = None

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint to the CPU, whatever is asked: nothing in it is trusted.

        Raises:
            UserError: If it is missing or damaged.
        """
        del map_location, weights_only
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)
