"""`evaluate`: models side by side, measured alike: perplexity, zero-shot accuracy, speed."""

# No `from __future__ import annotations`: the command line reads these types.
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pgprune_lightning.commands.device_option import add_device_option
from pgprune_lightning.commands.evaluate_request import (
    ExistingOutput,
    check_output,
    loading_of,
    protocol_of,
)
from pgprune_lightning.commands.experiment_options import command_line
from pgprune_lightning.console import OneLineErrorParser, quiet_libraries
from pgprune_lightning.errors import EXIT_USER_ERROR
from pgprune_lightning.evaluation import ZeroShotTask
from pgprune_lightning.folder_lock import exclusive_output
from pgprune_lightning.model_table.evaluation_run import prepare, run_evaluation
from pgprune_lightning.model_table.protocol import BosPerBlock, SpeedProtocol, TextProtocol
from pgprune_lightning.model_table.row import find_rows
from pgprune_lightning.model_table.texts import PRESETS

DESCRIPTION = (
    "Measures models alike and writes one table: dense, pruned by a plan (cut, as it is served) or "
    "exported. Start with: pgprune evaluate --model runs/quickstart --output runs/evaluation.json"
)


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows `evaluate`.

    Returns:
        The exit status: 0, or 2 if something could not be measured.

    Raises:
        UserError: If something has to be changed by the user; before any weights are loaded.
    """
    quiet_libraries()
    given = evaluate_parser().parse_args(list(arguments))
    output, protocol = Path(given.output), protocol_of(given)
    with exclusive_output(output, "--output"):
        check_output(output, given.existing)
        protocol.check()
        rows, loading = find_rows(given.model, given.base_model), loading_of(given, protocol)
        prepared = prepare(rows, protocol, loading)
        command = command_line("evaluate", arguments)
        complete = run_evaluation(prepared, protocol, loading, output, command)
    return 0 if complete else EXIT_USER_ERROR


def evaluate_parser() -> OneLineErrorParser:
    """The command's own options."""
    parser = OneLineErrorParser(prog="pgprune evaluate", description=DESCRIPTION)
    add = parser.add_argument
    add(
        "--model",
        type=str,
        nargs="+",
        required=True,
        help="Models, each MODEL or NAME=MODEL: hub id, folder, .gguf file, "
        "package:DIST/FILE.gguf, run, plan or export; llama.cpp:FILE.gguf has llama.cpp run it.",
    )
    add(
        "--output",
        type=str,
        required=True,
        help="JSON file of the results; a table goes beside it as .csv and .md.",
    )
    add(
        "--existing",
        type=ExistingOutput,
        default="stop",
        help="If one of these files is there already: stop, or replace them.",
    )
    add(
        "--base-model",
        type=str | None,
        default=None,
        help="Where the dense model of runs and plans lies now; where it lay, if not given.",
    )
    add(
        "--tokenizer",
        type=str | None,
        default=None,
        help="Model whose tokenizer the GGUF files have that llama.cpp runs; their own, if not "
        "given.",
    )
    add(
        "--dtype",
        type=Literal["auto", "bfloat16", "float16", "float32"],
        default="auto",
        help="Type of the weights; auto: bfloat16 where the device computes in it natively.",
    )
    add_device_option(parser)
    _add_text_options(parser)
    _add_zero_shot_options(parser)
    _add_speed_options(parser)
    return parser


def _add_text_options(parser: OneLineErrorParser) -> None:
    defaults, add = TextProtocol(), parser.add_argument
    add(
        "--texts",
        type=str,
        nargs="+",
        default=[],
        help=f"Texts for perplexity, each TEXT or NAME=TEXT: {', '.join(PRESETS)}, a file, folder "
        "or hub dataset; wikitext2, if nothing else is measured.",
    )
    add(
        "--lengths",
        type=int,
        nargs="+",
        default=list(defaults.lengths),
        help="Lengths of a block in tokens, BOS included.",
    )
    add(
        "--stride",
        type=int | None,
        default=defaults.stride,
        help="Read the texts too in overlapping windows of the greatest length, so many tokens "
        "apart.",
    )
    add(
        "--tokens",
        type=int | None,
        default=defaults.tokens,
        help="Tokens of each text at most, at each length; all, if not given.",
    )
    add(
        "--bos-per-block",
        type=BosPerBlock,
        default=defaults.bos_per_block,
        help="Begin blocks with the BOS token; auto: where the family needs it, such as Gemma.",
    )
    add(
        "--batch-tokens",
        type=int,
        default=defaults.tokens_per_batch,
        help="Tokens of texts that go through a model at once: they decide the memory.",
    )


def _add_zero_shot_options(parser: OneLineErrorParser) -> None:
    add = parser.add_argument
    add(
        "--zero-shot",
        type=ZeroShotTask,
        nargs="+",
        default=[],
        help="Zero-shot tasks, by lm-eval: piqa, hellaswag, winogrande, arc_easy, arc_challenge.",
    )
    add(
        "--zero-shot-folder",
        type=str | None,
        default=None,
        help="Folder with a file TASK.jsonl for each task; the hub, if not given.",
    )
    add(
        "--limit",
        type=int | None,
        default=None,
        help="Examples of each task, its first ones, at least 2; all, if not given.",
    )


def _add_speed_options(parser: OneLineErrorParser) -> None:
    add, defaults = parser.add_argument, SpeedProtocol()
    add(
        "--speed",
        action="store_true",
        help="Time generation of all models in turn, which are then in memory together.",
    )
    for name, what in (
        ("batch_size", "Sequences that are read and continued together."),
        ("prompt_tokens", "Tokens of a prompt (prefill)."),
        ("new_tokens", "Tokens of a continuation (decode)."),
        ("repetitions", "Timed generations of each model."),
    ):
        option = f"--{name.replace('_', '-')}"
        add(option, type=int, default=getattr(defaults, name), help=f"--speed: {what}")
