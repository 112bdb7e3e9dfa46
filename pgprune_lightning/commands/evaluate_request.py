"""What `evaluate` is asked for, as its parts need it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pgprune_lightning.commands.device_option import named_device
from pgprune_lightning.commands.output_file import check_writable
from pgprune_lightning.errors import UserError
from pgprune_lightning.model_table.evaluation_run import output_files
from pgprune_lightning.model_table.opening import Loading
from pgprune_lightning.model_table.protocol import (
    Protocol,
    SpeedProtocol,
    TextProtocol,
    ZeroShotProtocol,
)
from pgprune_lightning.model_table.texts import text_of

ExistingOutput = Literal["stop", "replace"]
WITHOUT_ANY = ("wikitext2",)
"""What is read where nothing is asked for."""


def protocol_of(given: Any) -> Protocol:
    """What is measured.

    Args:
        given: The parsed options.
    """
    texts = given.texts
    if not (texts or given.zero_shot or given.speed):
        texts = WITHOUT_ANY
    folder = given.zero_shot_folder
    return Protocol(
        text=TextProtocol(
            texts=tuple(map(text_of, texts)),
            lengths=tuple(given.lengths),
            stride=given.stride,
            tokens=given.tokens,
            bos_per_block=given.bos_per_block,
            tokens_per_batch=given.batch_tokens,
        ),
        zero_shot=ZeroShotProtocol(
            tasks=tuple(given.zero_shot),
            folder=None if folder is None else Path(os.path.expandvars(folder)).expanduser(),
            limit=given.limit,
        ),
        speed=SpeedProtocol(
            given.batch_size, given.prompt_tokens, given.new_tokens, given.repetitions
        )
        if given.speed
        else None,
    )


def loading_of(given: Any, protocol: Protocol) -> Loading:
    """How models are loaded.

    Args:
        given: The parsed options.
        protocol: Whose longest text llama.cpp makes room for.

    Raises:
        UserError: If the device is not there.
    """
    longest = max(protocol.lengths().values(), default=0)
    loading = Loading(given.dtype, named_device(given.device), given.tokenizer, longest)
    loading.check()
    return loading


def check_output(output: Path, existing: ExistingOutput) -> None:
    """Refuse an output that cannot be written, or is there.

    Raises:
        UserError: If so.
    """
    if output.suffix != ".json":
        raise UserError(f"--output: {output} must end in .json; .csv and .md go beside it.")
    for path in output_files(output):
        check_writable("output", path)
        if path.exists() and existing == "stop":
            raise UserError(
                f"--output: {path} is there already; give another file, or --existing replace."
            )
