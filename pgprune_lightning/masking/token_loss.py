"""Token losses in float32, without ever holding all logits.

The likelihood needs each token's own logit and the logarithm of the sum over the vocabulary, so it
goes through the vocabulary in parts: each row of the projection is read once for all tokens, and a
part's logits stay in the cache until they are summed.

Shapes: B sequences, T tokens, N tokens of all sequences, C tokens of a chunk, H hidden,
V vocabulary, P part of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, PreTrainedModel

from pgprune_lightning.masking.decoder_family import backbone_of

LOGITS_PER_CHUNK = {"cpu": 2**22, "cuda": 2**24}
"""Elements of one chunk of logits: 16 MB in float32, which caches hold, or 64 MB."""
TOKENS_PER_CHUNK = 2**12
"""Tokens of one chunk at most, so that its parts of the vocabulary do not get narrow."""


@torch.no_grad()
def token_losses(
    model: PreTrainedModel, input_ids_BT: Tensor, dense_BTH: Tensor | None = None
) -> Tensor:
    """Loss of every token: against the text, or the dense model where its states are given.

    Args:
        model: The frozen causal language model under a mask.
        input_ids_BT: Token ids, (B, T), int64; no padding.
        dense_BTH: `predicting_states` of the dense model on the same tokens, (B, T - 1, H).

    Returns:
        Nats per token, (B, T - 1), float32: `token_nll`, or `token_kl`.
    """
    if dense_BTH is None:
        return token_nll(model, input_ids_BT)
    return token_kl(model, input_ids_BT, dense_BTH.flatten(0, 1))


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
    chunks = zip(hidden_NH.split(TOKENS_PER_CHUNK), targets_N.split(TOKENS_PER_CHUNK), strict=True)
    nll_N = torch.cat([_chunk_nll(model, hidden_CH, targets_C) for hidden_CH, targets_C in chunks])
    return nll_N.view(input_ids_BT.shape[0], -1)


def _chunk_nll(model: PreTrainedModel, hidden_CH: Tensor, targets_C: Tensor) -> Tensor:
    """Negative log-likelihood of some tokens, a part of the vocabulary at a time."""
    size = max(1, _logits_per_chunk(hidden_CH) // len(hidden_CH))
    log_sums: list[Tensor] = []
    target_logits_C = torch.zeros(targets_C.shape, dtype=torch.float32, device=hidden_CH.device)
    for start in range(0, len(model.get_output_embeddings().weight), size):
        logits_CP = float_logits(model, hidden_CH, slice(start, start + size))
        place_C = targets_C - start
        inside_C = place_C.clamp(0, logits_CP.shape[1] - 1)
        found_C = logits_CP.gather(1, inside_C[:, None]).squeeze(1)
        target_logits_C = torch.where(place_C == inside_C, found_C, target_logits_C)
        # Its one pass is faster than the several of logsumexp.
        log_sums.append(F.cross_entropy(logits_CP, inside_C, reduction="none") + found_C)
    return torch.stack(log_sums).logsumexp(0) - target_logits_C


def float_logits(model: PreTrainedModel, hidden_CH: Tensor, part: slice = slice(None)) -> Tensor:
    """What the model's vocabulary projection, and its cap on logits, make of hidden states.

    Args:
        model: The causal language model.
        hidden_CH: Last hidden states, (C, H), in the model's dtype.
        part: The part of the vocabulary to look at; by default all of it.

    Returns:
        Logits, (C, P), float32.
    """
    head = model.get_output_embeddings()
    weight_PH, bias_P = head.weight[part], None
    if head.bias is not None:
        bias_P = head.bias[part]
    logits_CP = F.linear(hidden_CH, weight_PH, bias_P).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits_CP if cap is None else (logits_CP / cap).tanh() * cap


def _logits_per_chunk(hidden_NH: Tensor) -> int:
    return LOGITS_PER_CHUNK.get(hidden_NH.device.type, LOGITS_PER_CHUNK["cuda"])


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
    vocabulary = len(model.get_output_embeddings().weight)
    # Half as many tokens as for the likelihood, since there are two models' logits.
    chunk = max(1, _logits_per_chunk(hidden_NH) // (2 * vocabulary))
    kl_N = [
        F.kl_div(
            float_logits(model, hidden_CH).log_softmax(-1),
            float_logits(model, dense_CH).log_softmax(-1),
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
    output = backbone_of(model)(input_ids_BT, use_cache=False, past_key_values=_NoPast())
    hidden_BTH = output.last_hidden_state
    hidden_NH: Tensor = hidden_BTH[:, :-1].flatten(0, 1)
    return hidden_NH


class _NoPast(Cache):
    """Remembers nothing: keys and values pass through.

    Without any cache, transformers looks in the positions for several texts in one row, at every
    forward pass: a GPU is waited for, and a CUDA graph gets masks in place of causal attention.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return what is given."""
        del layer_idx
        return key_states, value_states
