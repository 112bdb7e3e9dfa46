"""What a forward pass costs: seconds and memory, for the model that a plan was cut to."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError

WARM_UP_PASSES = 2
"""The first passes choose kernels and reserve memory."""


@dataclass(frozen=True)
class Latency:
    """Cost of reading a batch of texts.

    Args:
        seconds: Of one forward pass, the median of all repetitions.
        tokens_per_second: Tokens of the batch by `seconds`.
        num_parameters: Parameters of the model, tied ones once.
        parameter_bytes: What they occupy.
        peak_memory_bytes: Most memory allocated on the device during the passes, the parameters
            among it, and what lay there for others, such as the dense model, not; None where the
            device is not CUDA.
        batch_size: Sequences in the batch.
        sequence_length: Tokens of a sequence.
    """

    seconds: float
    tokens_per_second: float
    num_parameters: int
    parameter_bytes: int
    peak_memory_bytes: int | None
    batch_size: int
    sequence_length: int


@torch.no_grad()
def measure_latency(
    model: PreTrainedModel,
    *,
    batch_size: int = 4,
    sequence_length: int = 2048,
    repetitions: int = 10,
) -> Latency:
    """Time forward passes over random tokens, with the logits of every token and no cache.

    A mask saves nothing of this; measure the model that `slicing.cut_model` returns.

    Args:
        model: A causal language model on its device.
        batch_size: Sequences in a pass.
        sequence_length: Tokens of a sequence.
        repetitions: Passes that are timed, after some that are not.

    Raises:
        UserError: If one of the numbers is below 1.

    Source: Paper, Table A2: sequences of 2,048 tokens in batches of 4.
    Differs: The paper does not say what its seconds span; at 31 to 54 of them it is more than one
        pass. Compare ratios between models, not seconds.
    """
    sizes = {
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "repetitions": repetitions,
    }
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"latency: {name} is {size}; it must be at least 1.")
    tokens_BT = _random_tokens(model, batch_size, sequence_length)
    for _ in range(WARM_UP_PASSES):
        model(tokens_BT, use_cache=False)
    parameters = list(model.parameters())
    parameter_bytes = sum(parameter.nbytes for parameter in parameters)
    device = tokens_BT.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        bytes_of_others = torch.cuda.memory_allocated(device) - parameter_bytes
    seconds = statistics.median(_timed_pass(model, tokens_BT) for _ in range(repetitions))
    return Latency(
        seconds=seconds,
        tokens_per_second=tokens_BT.numel() / seconds,
        num_parameters=sum(parameter.numel() for parameter in parameters),
        parameter_bytes=parameter_bytes,
        peak_memory_bytes=(
            torch.cuda.max_memory_allocated(device) - bytes_of_others
            if device.type == "cuda"
            else None
        ),
        batch_size=batch_size,
        sequence_length=sequence_length,
    )


def _random_tokens(model: PreTrainedModel, batch_size: int, sequence_length: int) -> Tensor:
    vocabulary: int = model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, sequence_length)
    return torch.randint(vocabulary, shape, generator=generator).to(model.device)


def _timed_pass(model: PreTrainedModel, tokens_BT: Tensor) -> float:
    wait_for(tokens_BT.device)
    start = perf_counter()
    model(tokens_BT, use_cache=False)
    wait_for(tokens_BT.device)
    return perf_counter() - start


def wait_for(device: torch.device) -> None:
    """A GPU only takes orders; without this the clock would time how fast they are given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
