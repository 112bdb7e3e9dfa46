"""A frozen model whose weights lie in parts on several ranks (FSDP2), whole nowhere.

Before a layer runs, the ranks of a node join its parts; after it they let the others' go. Inside a
layer the weights are therefore whole, and masks are executed as on one device. Outside of it they
are parts: whoever reads one calls `whole_weight`, on every rank.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.model_source import ModelSource

if TYPE_CHECKING:
    from transformers.distributed import DistributedConfig

OLDEST_TORCH = (2, 8)


def check_shard(shard: int, source: ModelSource) -> None:
    """Refuse to share what cannot be shared, as far as that shows on one rank.

    Args:
        shard: Ranks that share one copy of the weights.
        source: Where the model lies.

    Raises:
        UserError: If `shard` is below 1, this PyTorch is too old to share, or the model is a GGUF
            file.
    """
    if shard < 1:
        raise UserError(f"shard: must be at least 1, given {shard}; 1 keeps the model whole.")
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if shard > 1 and version < OLDEST_TORCH:
        raise UserError(
            f"shard: {shard} needs PyTorch 2.8 or newer, here is {torch.__version__}. Install a "
            "newer one, or leave shard at 1."
        )
    if shard > 1 and source.gguf_file is not None:
        raise UserError(
            f"shard: {source.given!r} is a GGUF file, which every rank would have to read whole. "
            "Give the model in Hugging Face format, or leave shard at 1."
        )


def shard_config(shard: int, device: torch.device) -> DistributedConfig:
    """Say how the ranks of this run divide into groups that share a copy of the weights.

    Groups are consecutive ranks, so that a `shard` that divides the devices of a node stays in it.

    Args:
        shard: Ranks that share one copy, at least 2.
        device: Where this rank computes.

    Returns:
        What `from_pretrained` takes as `distributed_config`.

    Raises:
        UserError: If the ranks do not divide so, or do not compute where PyTorch would share.
    """
    from transformers.distributed import DistributedConfig

    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if ranks % shard:
        raise UserError(
            f"shard: {shard} ranks are to share the model, but the run has {ranks}, which is no "
            f"multiple of it. Set trainer.strategy ddp, and trainer.devices times "
            "trainer.num_nodes to a multiple; trainer.devices itself, to stay inside the node."
        )
    accelerator = torch.accelerator.current_accelerator()
    shared_on = "cpu" if accelerator is None else accelerator.type
    if shared_on != device.type:
        raise UserError(
            f"shard: a model is shared on the machine's accelerator, {shared_on}, but the run "
            f"computes on {device.type}. Set trainer.accelerator auto, or leave shard at 1."
        )
    if device.type != "cpu":  # which device a rank takes is read from here
        os.environ["LOCAL_RANK"] = str(device.index)
    return DistributedConfig(fsdp_size=shard, dp_replicate_size=ranks // shard)


def run_whole_once(model: PreTrainedModel) -> None:
    """Let the model as a whole run, on one token: FSDP2 asks that it does before its parts do."""
    with torch.no_grad():
        model(torch.zeros((1, 1), dtype=torch.int64, device=model.device), use_cache=False)
    if model.config.tie_word_embeddings:
        # Sharing has made two equal weights of them; whole from now on, they can be one again.
        model.get_output_embeddings().weight = model.get_input_embeddings().weight


def is_in_parts(weight: Tensor) -> bool:
    """Whether this rank holds a part of a weight alone."""
    return isinstance(weight, DTensor)


def whole_weight(weight: Tensor) -> Tensor:
    """Join a weight whose parts lie on several ranks; all of them must call it.

    Args:
        weight: A parameter, of any shape.

    Returns:
        All of it: a copy for the moment if it lay in parts, else itself.
    """
    if not isinstance(weight, DTensor):
        return weight
    whole: Tensor = weight.full_tensor()
    return whole
