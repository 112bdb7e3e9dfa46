"""What a checkpoint holds besides Lightning's own, and what makes it the wrong one."""

import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.plan import BaseModel
from pgprune_lightning.policy import MaskPolicy

_POLICY = "policy."


def read_policy(ckpt_path: str | Path) -> dict[str, Tensor]:
    """Read the state of a checkpoint's policy.

    Args:
        ckpt_path: A checkpoint that a run has written.

    Returns:
        Its parameters and buffers, on the CPU; `keep_probabilities`, (U,), float64, is one of them.

    Raises:
        UserError: If the file is missing, damaged, or no checkpoint of this program.
    """
    path = Path(ckpt_path)
    if not path.is_file():
        raise UserError(
            f"ckpt_path: there is no file {str(path)!r}. A run keeps its last checkpoint as "
            "RUN_DIR/checkpoints/last.ckpt."
        )
    try:
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
        state: dict[str, Tensor] = checkpoint["state_dict"]
        state[_POLICY + "keep_probabilities"]  # every policy has them
        checkpoint["base_model"]["fingerprint"]  # what ties it to a model; read when it is restored
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(
            f"ckpt_path: {path} is damaged and cannot be read. Go on from another checkpoint of "
            f"the run, in {path.parent}, or start anew."
        ) from error
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"ckpt_path: {path} holds no pruning policy; give a checkpoint that this program wrote."
        ) from error
    return {
        name.removeprefix(_POLICY): tensor
        for name, tensor in state.items()
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
            f"ckpt_path: {ckpt_path} holds a policy over {found} units, but model.base_model and "
            f"model.unit_kinds give {num_units}. {config}"
        )
    if {name: t.shape for name, t in state.items()} != {n: t.shape for n, t in expected.items()}:
        raise UserError(
            f"ckpt_path: {ckpt_path} holds another policy than this model.policy, "
            f"{type(policy).__name__}: its state is {', '.join(state)}. {config}"
        )


def tie_to_model(checkpoint: dict[str, Any], base_model: BaseModel) -> None:
    """Write into a checkpoint which model its policy is learned on."""
    checkpoint["base_model"] = asdict(base_model)


def check_model(checkpoint: dict[str, Any], base_model: BaseModel) -> None:
    """Refuse the checkpoint of a policy that was learned on another model.

    Raises:
        UserError: If it was.
    """
    learned_on = checkpoint["base_model"]
    if learned_on["fingerprint"] != base_model.fingerprint:
        raise UserError(
            f"ckpt_path: the policy was learned on {learned_on['source']!r}, whose weights are "
            f"not those of {base_model.source!r}. Go on with the model of its run."
        )


def forget_broken_batch(checkpoint: dict[str, Any]) -> None:
    """Let a run that goes on count only the batches whose step was taken.

    One that an error broke off would shift all later validations.
    """
    loops = checkpoint.get("loops", {})
    if "fit_loop" in loops:
        batches = loops["fit_loop"]["epoch_loop.batch_progress"]["total"]
        batches["ready"] = checkpoint["global_step"]
