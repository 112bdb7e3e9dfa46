"""`bench`: what a training step costs, side by side with the step as it is usually written."""

# No `from __future__ import annotations`: the command line reads these types.
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from transformers import PreTrainedModel

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.benchmark import SHAPES, run_benchmark, shape_config
from pgprune_lightning.benchmark.picture import check_picture, draw
from pgprune_lightning.benchmark.random_weights import random_model
from pgprune_lightning.benchmark.report import header, rows, scaling_rows
from pgprune_lightning.benchmark.side_by_side import Benchmark
from pgprune_lightning.benchmark.timing import Limits
from pgprune_lightning.benchmark.workload import check_keep_ratios
from pgprune_lightning.checkout import research_module
from pgprune_lightning.commands.bench_choice import Choice, choose
from pgprune_lightning.commands.device_option import add_device_option, named_device
from pgprune_lightning.commands.experiment_options import command_line
from pgprune_lightning.commands.output_file import check_writable
from pgprune_lightning.console import OneLineErrorParser, quiet_libraries
from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation import provenance
from pgprune_lightning.folder_lock import exclusive_output
from pgprune_lightning.masking.frozen_model import (
    load_frozen_model,
    load_model_config,
    resolve_dtype,
)
from pgprune_lightning.masking.model_source import resolve_model_source
from pgprune_lightning.masking.positions import check_lengths
from pgprune_lightning.record_file import (
    PartOfRecord,
    PositiveCount,
    Share,
    checked,
    read_object,
)
from pgprune_lightning.training.execution_choice import ExecutionName

DESCRIPTION = (
    "Times whole training steps, ours in turn with a reference: sequential forward passes "
    "multiplied by the masks, with a host synchronisation in every layer. Start with: "
    "pgprune bench --shape smollm2-135m"
)

PositiveSeconds = Annotated[float, Field(gt=0)]


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows `bench`.

    Returns:
        The exit status: 0.

    Raises:
        UserError: If something has to be changed by the user; before any model is built.
    """
    quiet_libraries()
    given = bench_parser().parse_args(list(arguments))
    choice = choose(given)
    _check(given, choice)
    earlier = [_read(Path(file)) for file in given.others]
    with ExitStack() as locks:
        for option in ("output", "picture"):
            if given[option] is not None:
                locks.enter_context(exclusive_output(Path(given[option]), f"--{option}"))
        result = _measure(given, choice, command_line("bench", arguments))
        if given.output is not None:
            write_atomically(Path(given.output), (json.dumps(result, indent=1) + "\n").encode())
        if given.picture is not None:
            draw([*earlier, result], Path(given.picture))
    return 0


def _measure(given: Any, choice: Choice, command: str) -> dict[str, Any]:
    workload, keep_ratios = choice.workload, choice.keep_ratios
    device = named_device(given.device)
    model = _model(given.shape, choice, device)
    limits = Limits(given.steps, given.seconds)
    benchmark = Benchmark(model, workload, limits, choice.execution, choice.learning)
    about: dict[str, Any] = (
        {"model": given.shape or choice.source}
        | asdict(workload)
        | choice.learning.describe()
        | provenance(device)
    )
    about["command"] = command
    print(header(about | benchmark.describe()), flush=True)
    result = about | run_benchmark(benchmark, keep_ratios, _tell)
    if given.scaling:
        result["scaling"] = research_module("unit_scaling").time_by_units(
            device,
            keep_ratio=keep_ratios[0],
            num_mask_samples=workload.num_mask_samples,
            lr=workload.lr,
        )
        print(scaling_rows(result["scaling"]), flush=True)
    return result


def _tell(part: dict[str, Any]) -> None:
    print(rows(part), flush=True)


def bench_parser() -> OneLineErrorParser:
    """The command's own options."""
    parser = OneLineErrorParser(prog="pgprune bench", description=DESCRIPTION)
    add = parser.add_argument
    add(
        "--config",
        type=str,
        action="append",
        default=None,
        help="Recipe of fit, given again to lay one over another: model, sizes, keep ratio and how "
        "it learns, where no other option gives them.",
    )
    add(
        "--model",
        type=str | None,
        default=None,
        help="Model in place of the recipe's: folder, hub id, .gguf file, package:DIST/FILE.gguf.",
    )
    add(
        "--shape",
        type=str | None,
        default=None,
        help=f"Published shape with random weights instead: {', '.join(SHAPES)}.",
    )
    add(
        "--keep-ratio",
        type=float,
        nargs="+",
        default=None,
        help="Shares of the units that stay, each in (0, 1]; the recipe's, or 0.5.",
    )
    add(
        "--dtype",
        type=Literal["auto", "bfloat16", "float16", "float32"] | None,
        default=None,
        help="Type of the weights; auto: bfloat16 where the device computes in it natively.",
    )
    add_device_option(parser)
    add(
        "--execution",
        type=ExecutionName | None,
        default=None,
        help="How ours executes a mask; auto picks the fastest in the first steps. The recipe's, "
        "or auto.",
    )
    for name, what in (
        ("batch-size", "Sequences of a batch; the recipe's, or 8."),
        ("block-length", "Tokens of a sequence; the recipe's, or 128."),
        ("num-mask-samples", "Masks drawn in a step (N_s); the recipe's, or 2."),
    ):
        add(f"--{name}", type=int | None, default=None, help=what)
    add("--steps", type=int, default=20, help="Timed steps of each, at most, at a keep ratio.")
    add(
        "--seconds",
        type=float,
        default=30.0,
        help="Time for the steps of a keep ratio, in seconds.",
    )
    add(
        "--scaling", action="store_true", help="Time sampling and update at 10^3 to 10^7 units too."
    )
    add("--output", type=str | None, default=None, help="JSON file of the results.")
    add(
        "--picture", type=str | None, default=None, help="Picture of the costs: .png, .svg or .pdf."
    )
    add(
        "--others",
        type=str,
        nargs="+",
        default=[],
        help="JSON files of earlier results that the picture shows beside this one.",
    )
    return parser


def _check(given: Any, choice: Choice) -> None:
    """Refuse what would only fail after minutes."""
    choice.workload.check()
    choice.learning.check(choice.workload)
    check_keep_ratios(choice.keep_ratios)
    if given.steps < 1 or not given.seconds > 0:
        raise UserError("--steps must be at least 1 and --seconds above 0.")
    if given.shape is not None:
        shape_config(given.shape)
    for option in ("output", "picture"):
        if getattr(given, option) is not None:
            check_writable(option, Path(getattr(given, option)))
    if given.picture is not None:
        check_picture(Path(given.picture))
    elif given.others:
        raise UserError("--others: they are for the picture; give --picture too.")


def _model(shape: str | None, choice: Choice, device: torch.device) -> PreTrainedModel:
    dtype = resolve_dtype(choice.dtype, device)
    lengths = {"--block-length": choice.workload.block_length}
    if shape is not None:
        check_lengths(shape_config(shape), lengths)
        return random_model(shape_config(shape), dtype=dtype, device=device)
    source = resolve_model_source(choice.source)
    check_lengths(load_model_config(source), lengths)
    return load_frozen_model(source, dtype=dtype, device=device, attention=choice.attention)


class _Way(PartOfRecord):
    median_seconds: PositiveSeconds


class _AtRatio(PartOfRecord):
    keep_ratio: Share
    reference: _Way
    ours: _Way


class _Scaling(PartOfRecord):
    units: PositiveCount
    sample_seconds: PositiveSeconds
    estimate_seconds: PositiveSeconds
    update_seconds: PositiveSeconds


class _Result(_AtRatio):
    """What the picture shows of a result."""

    model: str
    parameters: PositiveCount
    keep_ratios: Annotated[list[_AtRatio], Field(min_length=1, default_factory=list)]
    scaling: Annotated[list[_Scaling], Field(min_length=1, default_factory=list)]


def _read(path: Path) -> dict[str, Any]:
    """An earlier result."""
    try:
        result = read_object(path, "--others")
        checked(_Result, result, path, "--others")
    except UserError as error:
        raise UserError(f"{error} It must be a result of bench (--output).") from error
    return result
