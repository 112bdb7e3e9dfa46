"""`export`: from a pruning plan to a model that people load and serve."""

# No `from __future__ import annotations`: the command line reads these types.
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from pgprune_lightning.atomic_directory import claimed_directory
from pgprune_lightning.commands.device_option import named_device
from pgprune_lightning.commands.export_options import export_parser
from pgprune_lightning.console import quiet_libraries
from pgprune_lightning.errors import UserError
from pgprune_lightning.export import ExportOptions
from pgprune_lightning.export.curve import CurveText, text_source
from pgprune_lightning.export.export_choice import MaskOptions, choose_exports
from pgprune_lightning.export.export_run import ExportRequest, check_output, run_export
from pgprune_lightning.export.formats import FORMATS
from pgprune_lightning.export.planned_model import check_units
from pgprune_lightning.masking.frozen_model import load_model_config, resolve_dtype
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.positions import check_lengths
from pgprune_lightning.masking.tokenizer import load_tokenizer
from pgprune_lightning.plan import PruningPlan, find_plan
from pgprune_lightning.stop_signals import exit_at_stop_signals


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows `export`.

    Returns:
        The exit status: 0.

    Raises:
        UserError: If something has to be changed by the user; where possible, before weights are
            loaded.
    """
    quiet_libraries()
    given = export_parser().parse_args(list(arguments))
    output = Path(given.output).expanduser()
    explained = exit_at_stop_signals(lambda: "Nothing was written. Start the same command again.")
    with explained, claimed_directory(output, "--output"):
        request = _request(given, output)
        run_export(request, lambda line: print(line, flush=True))
    print(f"written to {output}")
    return 0


def _request(given: Any, output: Path) -> ExportRequest:
    """Check the options against one another, the plan and the model's configuration."""
    check_output(output, replace=given.existing == "replace")
    keep_ratios = tuple(given.keep_ratio or ())
    _check_numbers(given, keep_ratios)
    device = named_device(given.device)
    plan = PruningPlan.load(find_plan(Path(given.plan).expanduser()))
    source = given.base_model or plan.base_model.source
    config = load_model_config(resolve_model_source(source))
    if given.text is not None or len(keep_ratios) > 1:
        check_lengths(config, {"--block-length": given.block_length})
    check_units(plan, config, source)
    options = ExportOptions(_dtype(given.dtype, config, device), given.quantization)
    export_format = FORMATS[given.format]
    masks = MaskOptions(keep_ratios, given.round_to, given.tensor_parallel)
    choices = choose_exports(plan, config, export_format, masks, options)
    text = _text(given, plan, len(keep_ratios) > 1)
    return ExportRequest(
        plan=Path(given.plan).expanduser(),
        base_model=given.base_model,
        export_format=export_format,
        options=options,
        choices=choices,
        text=text,
        blocks=None if text is None else text.blocks(load_tokenizer(source), config.vocab_size),
        device=device,
        output=output,
    )


def _check_numbers(given: Any, keep_ratios: tuple[float, ...]) -> None:
    for ratio in keep_ratios:
        if not 0 < ratio <= 1:
            raise UserError(f"--keep-ratio: must lie in (0, 1], given {ratio}.")
    if len(set(keep_ratios)) < len(keep_ratios):
        raise UserError(f"--keep-ratio: {' '.join(map(str, keep_ratios))} names one twice.")
    for name, lowest in (("block_length", 2), ("tokens", given.block_length)):
        value = getattr(given, name)
        if value is not None and value < lowest:
            option = name.replace("_", "-")
            raise UserError(f"--{option}: must be at least {lowest} tokens, given {value}.")


def _dtype(name: str, config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """The type that is asked for; that of the model's files where they are not packed."""
    if name != "files":
        return resolve_dtype(name, device)
    dtype = config.dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _text(given: Any, plan: PruningPlan, is_curve: bool) -> CurveText | None:
    if given.text is None and not is_curve:
        return None
    return CurveText(
        source=text_source(given.text),
        block_length=given.block_length,
        tokens=given.tokens,
        bos_per_block=bool(plan.validation.get("bos_per_block", False)),
    )
