"""What is read to measure a model: the same text at every block length."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.comparison import measurement
from pgprune_lightning.comparison.experiment import Experiment
from pgprune_lightning.data.data_module import TokenBlocksDataModule
from pgprune_lightning.data.text_source import TextSource
from tests.tiny_models import make_tiny_model
from tests.tiny_runs import TinyRun


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """The batches that are read, one list a block length."""
    batches: list[list[Tensor]] = []

    def record(_token_nll: Any, loader: Any, *, device: torch.device) -> float:
        del device
        batches.append(list(loader))
        return 1.0

    monkeypatch.setattr(measurement, "evaluate_perplexity", record)
    return batches


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_tiny_model("llama_gqa")


def _experiment(lengths: tuple[int, ...], tokens: int | None) -> Experiment:
    return Experiment(
        **{"title": "t", "recipe": (), "options": {}, "settings": {}, "methods": {}},
        **{"seeds": (0,), "zero_shot": (), "pictures": ()},
        evaluation_lengths=lengths,
        evaluation_tokens=tokens,
    )


def _data(
    tiny_run: TinyRun, num_blocks: int | None = None, **options: int
) -> TokenBlocksDataModule:
    texts = [
        TextSource(str(tiny_run.texts / name), num_blocks=blocks)
        for name, blocks in (("test.txt", num_blocks), ("valid.txt", 1))  # the first one is read
    ]
    return tiny_run.datamodule(test=texts, **options)


@pytest.mark.parametrize(
    ("asked", "num_blocks", "expected"),
    [
        (96, None, 96),
        (96, 2, 96),  # what the experiment asks for comes before the recipe's number of blocks
        (None, 4, 64),
        (None, 100, 128),  # all full blocks of a text of 130 words
    ],
)
def test_equal_tokens_are_read_at_every_length(
    tiny_run: TinyRun,
    model: PreTrainedModel,
    read: list[list[Tensor]],
    asked: int | None,
    num_blocks: int | None,
    expected: int,
) -> None:
    data = _data(tiny_run, num_blocks=num_blocks, evaluation_block_length=16)
    lengths = (8, 16, 32)
    measured = measurement.measure(model, data, _experiment(lengths, asked))
    assert measured == {f"perplexity_{length}": 1.0 for length in lengths}
    streams = []
    for length, batches in zip(lengths, read, strict=True):
        blocks = torch.cat(batches)
        assert blocks.shape[1] == length
        streams.append(blocks.flatten())
    for stream in streams:
        assert len(stream) == expected
        assert torch.equal(stream, streams[0])


def test_a_length_that_does_not_divide_the_tokens_reads_its_full_blocks(
    tiny_run: TinyRun, model: PreTrainedModel, read: list[list[Tensor]]
) -> None:
    measurement.measure(model, _data(tiny_run), _experiment((16, 48), 100))
    assert [torch.cat(batches).numel() for batches in read] == [96, 96]


def test_batches_hold_equal_tokens_at_every_length(
    tiny_run: TinyRun, model: PreTrainedModel, read: list[list[Tensor]]
) -> None:
    """They decide the memory; a block longer than them is a batch of its own."""
    data = _data(tiny_run, evaluation_block_length=16, evaluation_batch_size=2)
    measurement.measure(model, data, _experiment((8, 16, 32, 64), 128))
    assert [tuple(batches[0].shape) for batches in read] == [(4, 8), (2, 16), (1, 32), (1, 64)]
    assert all(len(torch.cat(batches).flatten()) == 128 for batches in read)


def test_perplexity_that_overflows_is_none(
    tiny_run: TinyRun, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement, "evaluate_perplexity", lambda *_, **__: float("inf"))
    measured = measurement.measure(model, _data(tiny_run), _experiment((16,), None))
    assert measured == {"perplexity_16": None}
