"""How many sequences go through a model at once, so that activations stay small beside weights."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig

from pgprune_lightning.masking.decoder_family import family_of

BYTES_PER_FORWARD = 2**30
"""What the activations of one forward pass may take at once; as much is left for everything else:
a chunk of logits, gathered copies of weights, and what an allocator does not give back."""


def sequences_per_forward(config: PreTrainedConfig, num_tokens: int, dtype: torch.dtype) -> int:
    """Number of sequences whose activations stay below `BYTES_PER_FORWARD`, at least 1.

    Args:
        config: The model's configuration.
        num_tokens: Tokens of a sequence.
        dtype: Type of the weights.
    """
    bytes_per_sequence = num_tokens * bytes_per_token(config, dtype)
    if config._attn_implementation == "eager":
        # Scores, their mask and softmax in float32, and the softmax in the model's type.
        bytes_per_sequence += 12 * config.num_attention_heads * num_tokens**2
    return max(1, BYTES_PER_FORWARD // bytes_per_sequence)


def bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Upper bound of the activations that are alive together in a decoder layer, per token.

    Args:
        config: The model's configuration.
        dtype: Type of the weights.
    """
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries = config.num_attention_heads * head_dim
    # Queries and keys with their rotated copies, repeated keys and values, the attention's output.
    attention = 8 * queries * dtype.itemsize
    # Gate, its activation, up, and their product before and after the mask.
    mlp = 4 * getattr(config, family_of(config).mlp_width) * dtype.itemsize
    # The residual stream before and after, and the norm, which computes in float32.
    stream = config.hidden_size * (3 * dtype.itemsize + 3 * 4)
    return int(max(attention, mlp) + stream)
