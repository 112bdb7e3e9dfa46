"""Checks that all ranks still learn one and the same policy."""

import hashlib
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.training import PolicyGradientPruning


class RankAgreement(Callback):
    """Ends a run of several ranks whose policies or estimators are no longer the same.

    Every rank takes the same step from the same gradient, so that policies stay equal to the last
    bit without being sent around. A rank that computes otherwise, by a fault of its memory or by
    another version of a library, would spoil what the others learn, unseen.

    Args:
        every_n_steps: How many steps lie between two checks; one hashes what was learned, some MB
            at most, and sends 8 bytes a tensor.

    Raises:
        UserError: If `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise UserError(
                f"rank_agreement.every_n_steps: must be at least 1, given {every_n_steps}."
            )
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: PolicyGradientPruning,  # type: ignore[override]
        outputs: Any,
        batch: Tensor,
        batch_idx: int,
    ) -> None:
        """Compare the hashes of all ranks.

        Raises:
            UserError: On every rank, if one differs.
        """
        del outputs, batch, batch_idx
        if trainer.world_size == 1 or trainer.global_step % self.every_n_steps:
            return
        state = pl_module.state_dict()
        # N tensors on each of W ranks.
        hashes_N = torch.stack([_hash(tensor) for tensor in state.values()])
        gathered: Any = pl_module.all_gather(hashes_N.to(pl_module.device))
        differs_WN = (gathered != gathered[:1]).cpu()
        if not bool(differs_WN.any()):
            return
        names = [name for name, differs in zip(state, differs_WN.any(0), strict=True) if differs]
        ranks = differs_WN.any(1).nonzero().flatten().tolist()
        raise UserError(
            f"After step {trainer.global_step}, what rank 0 has learned is no longer what others "
            f"have: {', '.join(names)} on rank {', '.join(map(str, ranks))} of "
            f"{trainer.world_size}. Use devices of one kind and the same library versions on all "
            "ranks, look for a faulty one, and go on from a checkpoint of step "
            f"{trainer.global_step - self.every_n_steps} or before."
        )


def _hash(tensor: Tensor) -> Tensor:
    """A hash of a tensor's bytes, a scalar, int64."""
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    digest = hashlib.sha256(content).digest()
    return torch.tensor(int.from_bytes(digest[:8], "big", signed=True), dtype=torch.int64)
