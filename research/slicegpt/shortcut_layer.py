"""The modules of a model whose residual stream changes its basis from block to block.

Shapes: B sequences, T tokens, W width of the stream, X width behind the next shortcut.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pgprune_lightning.masking.sub_layer import DecoderLayer


class StreamNorm(nn.Module):
    """RMSNorm without weights, of a stream from which directions were deleted.

    The mean square is taken over the width before the deletion: what is left keeps its scale, and
    the deleted directions count as zero.

    Args:
        dense_width: Hidden size of the model before it was sliced.
        eps: Added to the mean square.
    """

    def __init__(self, dense_width: int, eps: float) -> None:
        super().__init__()
        self.dense_width = dense_width
        self.eps = eps

    def forward(self, stream_BTW: Tensor) -> Tensor:
        """Normalise every token, in float32 at least."""
        values_BTW = stream_BTW.to(torch.promote_types(stream_BTW.dtype, torch.float32))
        mean_square = values_BTW.square().sum(-1, keepdim=True) / self.dense_width
        return (values_BTW * torch.rsqrt(mean_square + self.eps)).to(stream_BTW.dtype)


class Shortcut(nn.Module):
    """Carries the residual stream from the basis of one block into that of the next.

    Args:
        matrix_WX: Product of the old basis, transposed, and the new one, (W, X).
    """

    def __init__(self, matrix_WX: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(matrix_WX, requires_grad=False)

    def forward(self, stream_BTW: Tensor) -> Tensor:
        """Change the basis, (B, T, X)."""
        return stream_BTW @ self.weight


class ShortcutLayer(nn.Module):
    """A decoder layer with a change of basis on both of its residual connections.

    Its sub-modules keep the names that they have in every family that is sliced, so that whatever
    describes decoder layers describes this one too.

    Args:
        layer: The layer whose blocks have been rotated and sliced.
        attention_norm: In front of the attention.
        attention_shortcut: On the connection around the attention.
        mlp_norm: In front of the MLP.
        mlp_shortcut: On the connection around the MLP.
    """

    def __init__(
        self,
        layer: DecoderLayer,
        attention_norm: StreamNorm,
        attention_shortcut: Shortcut,
        mlp_norm: StreamNorm,
        mlp_shortcut: Shortcut,
    ) -> None:
        super().__init__()
        assert layer.mlp.module is not None
        self.input_layernorm = attention_norm
        self.self_attn = layer.attention.module
        self.attention_shortcut = attention_shortcut
        self.post_attention_layernorm = mlp_norm
        self.mlp = layer.mlp.module
        self.mlp_shortcut = mlp_shortcut

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """Run both blocks; `arguments` are what the model gives its layers for the attention."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **arguments)
        middle = self.attention_shortcut(hidden_states) + attended
        changed: Tensor = self.mlp(self.post_attention_layernorm(middle))
        return self.mlp_shortcut(middle) + changed
