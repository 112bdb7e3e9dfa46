"""Token losses in float32, without ever holding all logits.

Shapes: B sequences, T tokens, C tokens of a chunk, H hidden, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.masking.decoder_family import backbone_of

LOGITS_PER_CHUNK = 2**24
"""Elements of one chunk of logits: 64 MB in float32, whatever the vocabulary."""


@torch.no_grad()
def token_nll(model: PreTrainedModel, input_ids_BT: Tensor) -> Tensor:
    """Negative log-likelihood of every token given those before it.

    Args:
        model: The frozen causal language model, masked or not.
        input_ids_BT: Token ids, (B, T), int64; no padding.

    Returns:
        Nats per token, (B, T - 1), float32; entry t belongs to token t + 1.
    """
    hidden_BTH = backbone_of(model)(input_ids_BT, use_cache=False).last_hidden_state
    hidden_NH = hidden_BTH[:, :-1].flatten(0, 1)
    targets_N = input_ids_BT[:, 1:].flatten()
    head = model.get_output_embeddings()
    chunk = max(1, LOGITS_PER_CHUNK // head.weight.shape[0])
    nll_N = [
        F.cross_entropy(head(hidden_CH).float(), targets_C, reduction="none")
        for hidden_CH, targets_C in zip(hidden_NH.split(chunk), targets_N.split(chunk), strict=True)
    ]
    return torch.cat(nll_N).view(input_ids_BT.shape[0], -1)
