"""How fast models read prompts and write text, in turn, and what memory that takes.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pgprune_lightning.allocator import give_back_freed_memory
from pgprune_lightning.evaluation import Evaluated
from pgprune_lightning.evaluation.resources import ResourceMeter, memory_in_use
from pgprune_lightning.model_table.protocol import SpeedProtocol
from pgprune_lightning.model_table.quality import message_of


def time_in_turn(
    models: Mapping[str, Evaluated], protocol: SpeedProtocol
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Time generation, one model after another, again and again.

    What else the machine does then hits all of them.

    Args:
        models: What is timed, by name; all of them are in memory.
        protocol: What is read and written.

    Returns:
        By name: `prefill_tokens_per_second` and `decode_tokens_per_second`, of all sequences;
        `prefill_seconds` of a batch of prompts and `decode_seconds_per_token`, medians;
        `peak_memory_bytes` of the model with what generation takes, None where it is not known;
        `seconds` of every repetition. And by name what failed.

    Source: Paper, Table A2, has time and memory of a forward pass.
    """
    measured: dict[str, dict[str, Any]] = {}
    errors: dict[str, str] = {}
    for name, model in models.items():
        try:
            _generate(model, protocol)  # chooses kernels, and brings weights in from the disk
            measured[name] = {
                "peak_memory_bytes": _peak_bytes(model, protocol),
                "seconds": {"prefill": [], "decode": []},
            }
        except Exception as error:  # other models are worth timing without this one
            errors[name] = message_of(error)
    for _ in range(protocol.repetitions):
        for name, entry in measured.items():
            prefill, decode = _generate(models[name], protocol)
            entry["seconds"]["prefill"].append(prefill)
            entry["seconds"]["decode"].append(decode)
    return {name: _rates(entry, protocol) for name, entry in measured.items()}, errors


def _generate(model: Evaluated, protocol: SpeedProtocol) -> tuple[float, float]:
    return model.timed_generation(_prompts(model, protocol), protocol.new_tokens)


def _prompts(model: Evaluated, protocol: SpeedProtocol) -> Tensor:
    """Random tokens: what they are does not decide how long they take."""
    shape = (protocol.batch_size, protocol.prompt_tokens)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.facts.vocabulary, shape, generator=generator).to(model.device)


def _peak_bytes(model: Evaluated, protocol: SpeedProtocol) -> int | None:
    """The weights, and what generation takes besides; what lies there for others not."""
    if model.facts.runtime != "transformers":  # others reserve memory when they load
        return None
    give_back_freed_memory()
    before = memory_in_use(model.device)
    meter = ResourceMeter()
    meter.start(model.device)
    _generate(model, protocol)
    meter.stop()
    if before is None or meter.peak_memory_bytes is None:
        return None
    return model.facts.parameter_bytes + max(0, meter.peak_memory_bytes - before)


def _rates(entry: dict[str, Any], protocol: SpeedProtocol) -> dict[str, Any]:
    prefill = statistics.median(entry["seconds"]["prefill"])
    decode = statistics.median(entry["seconds"]["decode"]) / protocol.new_tokens
    return {
        "prefill_tokens_per_second": protocol.batch_size * protocol.prompt_tokens / prefill,
        "decode_tokens_per_second": protocol.batch_size / decode,
        "prefill_seconds": prefill,
        "decode_seconds_per_token": decode,
        **entry,
    }
