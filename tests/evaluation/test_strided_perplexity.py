"""Overlapping windows against a sum over tokens, each scored by hand with the context it has."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from pgprune_lightning.evaluation.strided_perplexity import strided_perplexity, windows
from pgprune_lightning.masking import token_nll
from tests.tiny_models import VOCABULARY, make_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_tiny_model("llama_gqa")


def _stream(num_tokens: int) -> np.ndarray:
    return np.random.default_rng(0).integers(VOCABULARY, size=num_tokens, dtype=np.int32)


def _by_hand(
    model: PreTrainedModel, stream: np.ndarray, length: int, stride: int, bos: int | None
) -> tuple[float, int]:
    """Token by token: the first window that holds it scores it, by that window's context."""
    width = length - (bos is not None)
    sums, count = 0.0, 0
    for position in range(len(stream)):
        start = 0
        while start + width <= position:
            start += stride
        context = [*([] if bos is None else [bos]), *stream[start:position].tolist()]
        if not context:
            continue
        logits = model(torch.tensor([context])).logits[0, -1].double()
        sums -= float(logits.log_softmax(-1)[stream[position]])
        count += 1
    return math.exp(sums / count), count


@pytest.mark.parametrize("bos", [None, 3])
@pytest.mark.parametrize(
    ("num_tokens", "length", "stride"),
    [(40, 16, 5), (41, 16, 8), (40, 16, 1), (33, 8, 6), (12, 16, 4), (16, 16, 4), (17, 16, 14)],
)
def test_equals_a_sum_over_tokens(
    model: PreTrainedModel, num_tokens: int, length: int, stride: int, bos: int | None
) -> None:
    stream = _stream(num_tokens)
    perplexity, count = strided_perplexity(
        lambda tokens_BT: token_nll(model, tokens_BT),
        stream,
        length=length,
        stride=stride,
        bos=bos,
        batch_size=3,
        device=CPU,
    )
    expected, expected_count = _by_hand(model, stream, length, stride, bos)
    assert perplexity == pytest.approx(expected, rel=1e-5)
    assert count == expected_count == num_tokens - (bos is None)


@pytest.mark.parametrize("num_tokens", range(2, 30))
def test_every_token_is_scored_once(num_tokens: int) -> None:
    for width in range(2, 9):
        for stride in range(1, width):
            scored = [
                position
                for window in windows(num_tokens, width, stride)
                for position in range(window.end - window.scored, window.end)
            ]
            assert scored == list(range(num_tokens)), (width, stride)
            assert all(w.end - w.start >= 2 for w in windows(num_tokens, width, stride))


def test_more_context_lowers_the_loss_of_a_copy(model: PreTrainedModel) -> None:
    """What the windows are for: a loss that falls with the context is lower by short strides."""

    def losses(tokens_BT: torch.Tensor) -> torch.Tensor:
        rows, length = tokens_BT.shape
        return (1 / torch.arange(1, length)).expand(rows, -1)

    values = [
        strided_perplexity(
            losses, _stream(200), length=16, stride=stride, bos=None, batch_size=4, device=CPU
        )[0]
        for stride in (2, 8, 15)
    ]
    assert values == sorted(values)
    assert len(set(values)) == 3
