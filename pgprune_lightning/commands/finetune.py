"""`finetune`: an exported model trained a little, so that it recovers from the cut."""

# No `from __future__ import annotations`: the command line reads these types.
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import docstring_parser

from pgprune_lightning.atomic_directory import claimed_directory
from pgprune_lightning.commands.device_option import add_device_option
from pgprune_lightning.commands.experiment_options import command_line
from pgprune_lightning.commands.finetune_request import build_job
from pgprune_lightning.console import OneLineErrorParser, quiet_libraries
from pgprune_lightning.finetuning.alpaca import ALPACA
from pgprune_lightning.finetuning.finetuning_run import run_finetuning
from pgprune_lightning.finetuning.options import LoraOptions
from pgprune_lightning.finetuning.work_folder import ExistingOutput, Resume, work_folder
from pgprune_lightning.folder_lock import SECONDS_TO_WAIT
from pgprune_lightning.stop_signals import exit_at_stop_signals

DESCRIPTION = (
    "Trains a low-rank adapter on a model that export wrote, merges it, and writes the model again "
    "in the same format. SIGTERM and Ctrl-C stop it after a step; --resume auto goes on, to the "
    "same result. Start with: pgprune finetune --model EXPORTED_FOLDER --output DIR"
)


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows `finetune`.

    Returns:
        The exit status: 0.

    Raises:
        UserError: If something has to be changed by the user; before any model is loaded where
            that is possible.
        SystemExit: With 75 or 130, if it was stopped.
    """
    quiet_libraries()
    given = finetune_parser().parse_args(list(arguments))
    output = Path(given.output).expanduser()
    wait = SECONDS_TO_WAIT if given.resume == "auto" else 0.0
    explained = exit_at_stop_signals(lambda: _how_to_go_on(output))
    with explained, claimed_directory(output, "--output", wait_seconds=wait):
        job = build_job(given, command_line("finetune", arguments))
        if job is None:
            print(f"{given.output} holds this fine-tuning already, finished.")
            return 0
        print("\n".join(_header(job.description)), flush=True)
        result = run_finetuning(job)
    print("\n".join(_report(result, given.output)))
    return 0


def _how_to_go_on(output: Path) -> str:
    if work_folder(output).exists():
        return "Go on with --resume auto."
    return "There was nothing to keep yet. Start the same command again."


def _header(job: dict[str, Any]) -> list[str]:
    records, lora = job["records"], job["lora"]
    return [
        f"model      {job['model']} ({job['architecture']}, {job['dtype']})",
        f"records    {records['drawn']:,} of {records['read']:,}; {records['without_answer']:,} of "
        f"them have no answer within {lora['max_length']:,} tokens and are left out",
        f"adapter    rank {lora['rank']}, alpha {lora['alpha']} on "
        f"{', '.join(lora['target_modules'])}",
    ]


def _report(result: dict[str, Any], output: str) -> list[str]:
    lines = [f"loss       {result['first_loss']:.3f} to {result['last_loss']:.3f} nats per token"]
    if result["text"] is not None:
        text = result["text"]
        before, after = (
            "overflow" if value is None else f"{value:.2f}"
            for value in (result["perplexity_before"], result["perplexity_after"])
        )
        lines.append(
            f"perplexity {before} to {after} on {text['label']}, blocks of "
            f"{text['block_length']:,} tokens"
        )
    return [*lines, f"written    {output}"]


def finetune_parser() -> OneLineErrorParser:
    """The command's own options."""
    parser = OneLineErrorParser(prog="pgprune finetune", description=DESCRIPTION)
    add = parser.add_argument
    add(
        "--model",
        type=str,
        required=True,
        help="Folder that export wrote, of format hf, uniform or padded.",
    )
    add(
        "--output",
        type=str,
        required=True,
        help="Folder of the tuned model; until it is finished, DIR.unfinished holds what --resume "
        "auto goes on from.",
    )
    add(
        "--records",
        type=str,
        default=ALPACA,
        help="What is learned: a hub dataset or a .jsonl or .parquet file, each record with "
        "instruction, input and output.",
    )
    _add_lora_options(parser)
    add(
        "--text",
        type=str | None,
        default=None,
        help="Text whose perplexity is measured before and after: a .raw file (WikiText), a .txt "
        "file, or a hub dataset such as Salesforce/wikitext, whose test split is read.",
    )
    add("--block-length", type=int, default=128, help="Length of a block of the text in tokens.")
    add("--tokens", type=int | None, default=None, help="Tokens of the text at most; all.")
    add(
        "--bos-per-block",
        action="store_true",
        help="Begin every block of the text with the BOS token, which some families need.",
    )
    add(
        "--dtype",
        type=Literal["files", "auto", "bfloat16", "float16", "float32"],
        default="files",
        help="Type of the weights below the adapters, trained on and written: that of the export's "
        "files; auto: bfloat16 where the device computes in it natively.",
    )
    add_device_option(parser)
    add("--checkpoint-every", type=int, default=10, help="Steps between checkpoints.")
    add(
        "--resume",
        type=Resume,
        default="never",
        help="Go on from the newest checkpoint that loads, or start where there is none (auto), "
        "or never.",
    )
    add(
        "--existing",
        type=ExistingOutput,
        default="stop",
        help="If the output exists, or an unfinished fine-tuning: stop, or replace it.",
    )
    return parser


def _add_lora_options(parser: OneLineErrorParser) -> None:
    """Add the fields of `LoraOptions`, with what its docstring says of them."""
    documented = docstring_parser.parse(LoraOptions.__doc__ or "").params
    help_of = {param.arg_name: " ".join((param.description or "").split()) for param in documented}
    for field in fields(LoraOptions):
        name, help_text = f"--{field.name.replace('_', '-')}", help_of[field.name]
        if field.name == "target_modules":
            parser.add_argument(name, type=str, nargs="+", default=None, help=help_text)
        else:
            kind = type(field.default)
            parser.add_argument(name, type=kind, default=field.default, help=help_text)
