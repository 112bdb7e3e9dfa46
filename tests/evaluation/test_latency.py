"""What is timed and counted; never how fast this machine is.

Shapes: U units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation import latency
from pgprune_lightning.evaluation.latency import WARM_UP_PASSES, measure_latency
from pgprune_lightning.masking import unit_layout_of
from pgprune_lightning.slicing import cut_model
from tests.tiny_models import make_tiny_model


def _clock(durations: list[float]) -> Callable[[], float]:
    """Time stands still between the passes, and takes the durations given within them."""

    def readings() -> Iterator[float]:
        now = 100.0
        for duration in durations:
            yield now
            now += duration
            yield now

    remaining = readings()
    return lambda: next(remaining)


def test_the_median_pass_after_warming_up(
    tiny_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shapes = tiny_model("llama_gqa"), []

    def note(_module: torch.nn.Module, arguments: tuple[Tensor], options: dict[str, bool]) -> None:
        shapes.append(arguments[0].shape)
        assert options == {"use_cache": False}

    model.register_forward_pre_hook(note, with_kwargs=True)
    monkeypatch.setattr(latency, "perf_counter", _clock([9.0, 0.5, 2.0, 1.0, 8.0]))
    measured = measure_latency(model, batch_size=3, sequence_length=10, repetitions=5)
    assert measured.seconds == 2.0
    assert measured.tokens_per_second == 15.0
    assert shapes == [(3, 10)] * (WARM_UP_PASSES + 5)
    assert (measured.batch_size, measured.sequence_length) == (3, 10)


@pytest.mark.parametrize("name", ["llama_mha", "llama_gqa"])
def test_counts_what_a_cut_model_holds(
    tiny_model: Callable[..., PreTrainedModel], name: str
) -> None:
    """The first of them has tied embeddings, which count once."""
    model = tiny_model(name)
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    mask_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(0)) < 0.5
    cut = cut_model(model, space, mask_U)
    measured = measure_latency(cut, batch_size=1, sequence_length=4, repetitions=1)
    assert measured.num_parameters == space.kept_parameters(mask_U)
    assert measured.parameter_bytes == 4 * measured.num_parameters
    assert measured.seconds > 0
    assert measured.peak_memory_bytes is None

    in_half = measure_latency(cut.bfloat16(), batch_size=1, sequence_length=4, repetitions=1)
    assert in_half.parameter_bytes == 2 * measured.num_parameters


@pytest.mark.parametrize("name", ["batch_size", "sequence_length", "repetitions"])
def test_numbers_below_one(tiny_model: Callable[..., PreTrainedModel], name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is 0; it must be at least 1"):
        measure_latency(tiny_model("llama_gqa"), **{name: 0})


@pytest.mark.gpu
def test_memory_on_a_gpu_grows_with_the_batch(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama_gqa").to("cuda")
    peaks = [
        measure_latency(model, batch_size=size, sequence_length=512).peak_memory_bytes
        for size in (1, 32)
    ]
    logits = 31 * 512 * 97 * 4
    assert peaks[1] - peaks[0] > logits


@pytest.mark.gpu
def test_memory_of_others_on_the_device_is_not_the_models() -> None:
    model = make_tiny_model("llama_gqa").cuda()
    sizes = {"batch_size": 2, "sequence_length": 64, "repetitions": 1}
    alone = measure_latency(model, **sizes).peak_memory_bytes
    other = torch.zeros(2**24, device="cuda")
    beside = measure_latency(model, **sizes).peak_memory_bytes
    assert alone is not None
    assert beside is not None
    assert abs(beside - alone) < 2**20 < other.nbytes
