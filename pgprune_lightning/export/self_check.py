"""Comparing what was written with the masked model, on a fixed batch.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.export.export_format import (
    ROUNDING,
    ExportFormat,
    ExportOptions,
    PrunedModel,
)
from pgprune_lightning.masking.dense_masked import DenseMaskedExecution

SEQUENCES, TOKENS = 2, 64
LARGEST_IN_FLOAT32 = 4_000_000_000
"""Parameters of the largest model that is checked in float32; others would not fit twice."""


@dataclass(frozen=True)
class SelfCheck:
    """Largest absolute differences of logits from those of the masked model.

    Args:
        cut: Of the model that was cut in memory.
        reloaded: Of what lies on the disk; None if nothing here can read it.
        largest_logit: Largest absolute logit of the masked model, to judge the others by.
        dtype: The type that was computed in.
    """

    cut: float
    reloaded: float | None
    largest_logit: float
    dtype: torch.dtype


@torch.no_grad()
def check_export(
    pruned: PrunedModel, export_format: ExportFormat, folder: Path, options: ExportOptions
) -> SelfCheck:
    """Compute the logits of the masked, the cut and the reloaded model.

    Args:
        pruned: What was exported.
        export_format: How.
        folder: Where it was written.
        options: What the user chose.

    Returns:
        The differences.

    Raises:
        UserError: One is larger than rounding explains.
    """
    device = pruned.dense.device
    tokens_BT = check_tokens(pruned.dense).to(device)
    with _precise(pruned.dense), _precise(pruned.cut):
        with DenseMaskedExecution(pruned.dense, pruned.plan.space).masked(
            pruned.mask_U.to(device)
        ) as masked:
            expected = masked(tokens_BT, use_cache=False).logits.float()
        cut = _difference(pruned.cut(tokens_BT, use_cache=False).logits, expected)
        read = export_format.reload(folder, pruned, device)
        reloaded = None if read is None else _difference(read(tokens_BT), expected)
        largest = float(expected.abs().max())
        check = SelfCheck(cut, reloaded, largest, pruned.dense.dtype)
        share = export_format.tolerance(options) or ROUNDING[pruned.dense.dtype]
        tolerance = share * max(1.0, largest)
    for name, difference in (("cut", cut), ("reloaded", reloaded)):
        # "not <=", so that NaN is too much.
        if difference is not None and not difference <= tolerance:
            raise UserError(
                f"export: the {name} model's logits differ from the masked model's by "
                f"{difference:.3g}, and rounding explains {tolerance:.3g}. Nothing was written. "
                "Please report it with the plan, or export another --format."
            )
    return check


def check_tokens(model: PreTrainedModel) -> Tensor:
    """The fixed batch: random tokens, the same for every model of a vocabulary, (B, T), int64."""
    config = model.config
    length = min(TOKENS, getattr(config, "max_position_embeddings", TOKENS))
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (SEQUENCES, length), generator=generator)


def _difference(logits: Tensor, expected: Tensor) -> float:
    return float((logits.float().to(expected.device) - expected).abs().max())


@contextmanager
def _precise(model: PreTrainedModel) -> Iterator[None]:
    """Compute in float32 with the weights as they are, where that is affordable."""
    before = {parameter: parameter.dtype for parameter in model.parameters()}
    if model.num_parameters() <= LARGEST_IN_FLOAT32:
        _retype(model, dict.fromkeys(before, torch.float32))
    try:
        yield
    finally:
        _retype(model, before)


def _retype(model: nn.Module, dtypes: dict[nn.Parameter, torch.dtype]) -> None:
    # Not `model.to`, which would round buffers too, such as rotary frequencies.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtypes[parameter])
