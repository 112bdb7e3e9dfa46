"""`finetune`: an exported model trained a little, so that it recovers from the cut."""

# No `from __future__ import annotations`: the command line reads these types.
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

import docstring_parser
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from pgprune_lightning.atomic_directory import check_no_foreign_files, claimed_directory
from pgprune_lightning.commands.device_option import add_device_option, named_device
from pgprune_lightning.commands.experiment_options import command_line
from pgprune_lightning.console import OneLineErrorParser, quiet_libraries
from pgprune_lightning.data.token_blocks import TokenBlocks
from pgprune_lightning.errors import UserError, about
from pgprune_lightning.export.curve import CurveText, text_source
from pgprune_lightning.folder_lock import SECONDS_TO_WAIT
from pgprune_lightning.masking.frozen_model import model_on_meta
from pgprune_lightning.masking.positions import check_lengths
from pgprune_lightning.masking.tokenizer import load_tokenizer
from pgprune_lightning.recovery.adapter_training import first_difference, holds_another
from pgprune_lightning.recovery.alpaca import ALPACA, draw_examples, read_alpaca
from pgprune_lightning.recovery.exported_folder import (
    RECORDS,
    dtype_of,
    folder_digest,
    read_exported_config,
)
from pgprune_lightning.recovery.finetuning_run import (
    ExistingOutput,
    Job,
    Resume,
    check_output,
    finished_result,
    remove_work_folder,
    run_finetuning,
    work_folder,
)
from pgprune_lightning.recovery.lora import (
    LoraOptions,
    check_finetuning,
    check_target_modules,
    target_modules_of,
)
from pgprune_lightning.stop_signals import exit_at_stop_signals
from pgprune_lightning.training.checkpoints import CHECKPOINTS

DESCRIPTION = (
    "Trains a low-rank adapter on a model that export wrote, merges it, and writes the model again "
    "in the same format. SIGTERM and Ctrl-C stop it after a step; --resume auto goes on, to the "
    "same result. Start with: pgprune finetune --model EXPORTED_FOLDER --output DIR"
)

IDENTITY = ("dtype", "lora", "text", "model_digest", "examples_digest")
"""What decides the numbers, by its names in `finetune.json`; the first difference is named."""


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
        job = _build_job(given, command_line("finetune", arguments))
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


def _build_job(given: Any, command: str) -> Job | None:
    """Turn options into a job.

    Args:
        given: The parsed options.
        command: What a user types to run it again.

    Returns:
        The job; None if it is finished, and was asked to go on.

    Raises:
        UserError: If something is missing, out of range or in the way.
    """
    lora = LoraOptions(**{field.name: given[field.name] for field in fields(LoraOptions)})
    exported, output = Path(given.model).expanduser(), Path(given.output).expanduser()
    device = named_device(given.device)
    check_finetuning(lora)
    _check_numbers(given)
    config = read_exported_config(exported)
    check_output(output, exported, given.existing, given.resume)
    text_length = 0 if given.text is None else given.block_length
    check_lengths(config, {"--max-length": lora.max_length, "--block-length": text_length})
    lora = _checked_adapter(config, lora)
    with about("--records"):
        records = read_alpaca(given.records)
    tokenizer = load_tokenizer(str(exported))
    examples = draw_examples(tokenizer, records, lora, config.vocab_size)
    blocks, text = _text(given, tokenizer, config.vocab_size)
    dtype = dtype_of(config, given.dtype, device)
    drawn = min(lora.num_records, len(records))
    described = {
        "model": str(exported),
        "architecture": (config.architectures or [type(config).__name__])[0],
        "dtype": str(dtype).removeprefix("torch."),
        "records": {
            "source": given.records,
            "read": len(records),
            "drawn": drawn,
            "without_answer": drawn - len(examples),
        },
        "lora": asdict(lora),
        "text": text,
        "model_digest": folder_digest(exported),
        "examples_digest": hashlib.sha256(json.dumps(examples).encode()).hexdigest(),
    }
    identity = {name: described[name] for name in IDENTITY}
    if given.resume == "auto" and _is_finished(output, identity, given.existing):
        # A kill after the model was in place has left what it was made from.
        if not holds_another(work_folder(output) / CHECKPOINTS, identity):
            remove_work_folder(output)
        return None
    if given.existing == "replace":
        check_no_foreign_files(output, RECORDS, "finetune")
    return Job(
        exported=exported,
        output=output,
        lora=lora,
        examples=examples,
        text=blocks,
        dtype=dtype,
        device=device,
        every=given.checkpoint_every,
        resumes=given.resume == "auto",
        identity=identity,
        description=described,
        command=command,
    )


def _is_finished(output: Path, identity: dict[str, Any], existing: str) -> bool:
    try:
        earlier = finished_result(output)
    except UserError as error:
        if existing == "replace":
            return False
        raise UserError(f"{error} Choose another, or pass --existing replace.") from error
    if earlier is None:
        return False
    difference = first_difference({name: earlier.get(name) for name in IDENTITY}, identity)
    if difference and existing == "stop":
        raise UserError(
            f"--output: {output} holds a model that was tuned otherwise ({difference}). Choose "
            "another, or pass --existing replace."
        )
    return not difference


def _check_numbers(given: Any) -> None:
    lowest = {"checkpoint_every": 1, "block_length": 2, "tokens": given.block_length}
    for name, minimum in lowest.items():
        if given[name] is not None and given[name] < minimum:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option}: must be at least {minimum}, given {given[name]}.")


def _checked_adapter(config: PreTrainedConfig, lora: LoraOptions) -> LoraOptions:
    """Name the projections; refuse one that the model has not."""
    model = model_on_meta(config)
    names = target_modules_of(model, lora)
    for name in names:
        check_target_modules(model, [name])
    return replace(lora, target_modules=list(names))  # as JSON gives it back


def _text(
    given: Any, tokenizer: PreTrainedTokenizerBase, num_rows: int
) -> tuple[TokenBlocks | None, dict[str, Any] | None]:
    if given.text is None:
        return None, None
    length = given.block_length
    text = CurveText(text_source(given.text), length, given.tokens, given.bos_per_block)
    blocks = text.blocks(tokenizer, num_rows)
    assert blocks is not None, "a text that is named is not optional"
    return blocks, {
        "source": given.text,
        "label": text.source.title,
        "block_length": length,
        "blocks": len(blocks),
        "bos_per_block": given.bos_per_block,
    }


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
