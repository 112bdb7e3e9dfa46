"""Token losses in float32, without ever holding all logits.

Shapes: B sequences, T tokens, N tokens of all sequences, C tokens of a chunk, H hidden,
V vocabulary.
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
    hidden_NH = predicting_states(model, input_ids_BT)
    targets_N = input_ids_BT[:, 1:].flatten()
    head = model.get_output_embeddings()
    chunk = max(1, LOGITS_PER_CHUNK // head.weight.shape[0])
    nll_N = [
        F.cross_entropy(head(hidden_CH).float(), targets_C, reduction="none")
        for hidden_CH, targets_C in zip(hidden_NH.split(chunk), targets_N.split(chunk), strict=True)
    ]
    return torch.cat(nll_N).view(input_ids_BT.shape[0], -1)


@torch.no_grad()
def token_kl(model: PreTrainedModel, input_ids_BT: Tensor, dense_NH: Tensor) -> Tensor:
    """Divergence of a masked model's next-token distributions from the dense model's.

    Args:
        model: The frozen causal language model under a mask.
        input_ids_BT: Token ids, (B, T), int64; no padding.
        dense_NH: `predicting_states` of the dense model on the same tokens. Its logits are made
            from them again, a chunk at a time: kept for all tokens they would take gigabytes.

    Returns:
        KL(dense || masked) in nats per token, (B, T - 1), float32; entry t belongs to token t + 1.
    """
    hidden_NH = predicting_states(model, input_ids_BT)
    head = model.get_output_embeddings()
    # Half as many tokens as for the likelihood, since there are two models' logits.
    chunk = max(1, LOGITS_PER_CHUNK // (2 * head.weight.shape[0]))
    kl_N = [
        F.kl_div(
            head(hidden_CH).float().log_softmax(-1),
            head(dense_CH).float().log_softmax(-1),
            reduction="none",
            log_target=True,
        ).sum(-1)
        for hidden_CH, dense_CH in zip(hidden_NH.split(chunk), dense_NH.split(chunk), strict=True)
    ]
    return torch.cat(kl_N).view(input_ids_BT.shape[0], -1)


@torch.no_grad()
def predicting_states(model: PreTrainedModel, input_ids_BT: Tensor) -> Tensor:
    """Last hidden states of all tokens that have a successor.

    Args:
        model: The frozen causal language model, masked or not.
        input_ids_BT: Token ids, (B, T), int64; no padding.

    Returns:
        What the vocabulary projection reads, (N, H), N = B (T - 1), in the model's dtype.
    """
    hidden_BTH = backbone_of(model)(input_ids_BT, use_cache=False).last_hidden_state
    hidden_NH: Tensor = hidden_BTH[:, :-1].flatten(0, 1)
    return hidden_NH
