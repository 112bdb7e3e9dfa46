"""What `finetune` is asked for, checked before any weight is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from pgprune_lightning.atomic_directory import check_no_foreign_files
from pgprune_lightning.commands.device_option import named_device
from pgprune_lightning.data.token_blocks import TokenBlocks
from pgprune_lightning.errors import UserError, about
from pgprune_lightning.export.curve import CurveText, text_source
from pgprune_lightning.finetuning import LoraOptions, check_finetuning, read_alpaca
from pgprune_lightning.finetuning.adapter_checkpoints import AdapterCheckpoints, first_difference
from pgprune_lightning.finetuning.adapter_training import Example
from pgprune_lightning.finetuning.exported_folder import (
    RECORDS,
    dtype_of,
    folder_digest,
    read_exported_config,
)
from pgprune_lightning.finetuning.finetuning_run import Job
from pgprune_lightning.finetuning.lora import (
    check_target_modules,
    draw_examples,
    target_modules_of,
)
from pgprune_lightning.finetuning.work_folder import (
    CHECKPOINTS,
    check_output,
    finished_result,
    remove_work_folder,
    work_folder,
)
from pgprune_lightning.masking.frozen_model import model_on_meta
from pgprune_lightning.masking.positions import check_lengths
from pgprune_lightning.masking.tokenizer import load_tokenizer

IDENTITY = ("dtype", "lora", "text", "model_digest", "examples_digest")
"""What decides the numbers, by its names in `finetune.json`; the first difference is named."""


def build_job(given: Any, command: str) -> Job | None:
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
        "examples_digest": _digest(examples),
    }
    identity = {name: described[name] for name in IDENTITY}
    if given.resume == "auto" and _is_finished(output, identity, given.existing):
        # A kill after the model was in place has left what it was made from.
        if not AdapterCheckpoints(work_folder(output) / CHECKPOINTS, identity).are_of_another():
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


def _digest(examples: Sequence[Example]) -> str:
    return hashlib.sha256(json.dumps(examples).encode()).hexdigest()
