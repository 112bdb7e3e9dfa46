"""Perplexity weighs every token alike, whichever batch or rank it comes in.

Shapes: B sequences, T tokens, N tokens of all batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from pgprune_lightning.evaluation import TokenPerplexity, evaluate_perplexity
from pgprune_lightning.masking import token_nll
from tests.tiny_models import random_tokens

UNEVEN_BATCHES = [torch.full((3, 5), 1.0), torch.full((1, 5), 5.0)]
TOKEN_MEAN = (15 * 1.0 + 5 * 5.0) / 20
BATCH_MEAN = (1.0 + 5.0) / 2


def test_exp_of_the_token_weighted_mean() -> None:
    metric = TokenPerplexity()
    for nll_BT in UNEVEN_BATCHES:
        metric.update(nll_BT)
    assert float(metric.compute()) == pytest.approx(math.exp(TOKEN_MEAN), rel=1e-14)
    assert float(metric.compute()) != pytest.approx(math.exp(BATCH_MEAN), rel=0.1)


def test_reset_forgets() -> None:
    metric = TokenPerplexity()
    metric.update(torch.full((2, 2), 7.0))
    metric.reset()
    metric.update(torch.full((1, 2), 2.0))
    assert float(metric.compute()) == pytest.approx(math.exp(2.0))


def test_sums_are_float64() -> None:
    """In float32 a sum of 1e8 swallows every further loss of 1."""
    metric = TokenPerplexity()
    metric.update(torch.tensor([[1e8]]))
    for _ in range(100):
        metric.update(torch.tensor([[1.0]]))
    assert float(metric.nll_sum) == 1e8 + 100
    assert metric.compute().dtype == torch.float64


def test_an_infinite_loss_is_not_hidden() -> None:
    metric = TokenPerplexity()
    metric.update(torch.tensor([[1.0, math.inf]]))
    assert float(metric.compute()) == math.inf


def _perplexity_of_a_rank(rank: int, folder: str) -> None:
    """The first rank has one batch and the other has two: their counts differ too."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    share = [[UNEVEN_BATCHES[0]], [UNEVEN_BATCHES[1], torch.full((2, 5), 3.0)]][rank]
    metric = TokenPerplexity()
    for nll_BT in share:
        metric.update(nll_BT)
    Path(folder, str(rank)).write_text(repr(float(metric.compute())))
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_weigh_by_their_tokens(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_perplexity_of_a_rank, args=(str(tmp_path),), nprocs=2)
    expected = math.exp((15 * 1.0 + 5 * 5.0 + 10 * 3.0) / 30)
    for rank in ("0", "1"):
        assert float((tmp_path / rank).read_text()) == pytest.approx(expected, rel=1e-14)


def test_evaluates_a_text() -> None:
    blocks_BT = torch.arange(20).view(5, 4)
    seen: list[int] = []

    def losses(input_ids_BT: Tensor) -> Tensor:
        seen.append(len(input_ids_BT))
        return input_ids_BT[:, 1:] / 10

    batches: DataLoader[Tensor] = DataLoader(blocks_BT, batch_size=2)
    perplexity = evaluate_perplexity(losses, batches, device=torch.device("cpu"))
    scored = [value / 10 for value in range(20) if value % 4]
    assert perplexity == pytest.approx(math.exp(sum(scored) / 15), rel=1e-6)
    assert seen == [2, 2, 1]


def test_batch_size_does_not_matter(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model, blocks_BT = tiny_model("llama_gqa"), random_tokens(rows=7)
    perplexities = [
        evaluate_perplexity(
            lambda tokens_BT: token_nll(model, tokens_BT),
            DataLoader(blocks_BT, batch_size=batch_size),
            device=torch.device("cpu"),
        )
        for batch_size in (1, 3, 7)
    ]
    expected = float(token_nll(model, blocks_BT).double().mean().exp())
    assert perplexities == pytest.approx([expected] * 3, rel=1e-6)
