"""Zero-shot accuracy on multiple-choice tasks, by EleutherAI's evaluation harness."""

from __future__ import annotations

import copy
import io
import logging
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune_lightning.data.documents import as_utf8
from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation.zero_shot_tasks import (
    HARNESS_FOLDERS,
    ZeroShotTask,
    check_zero_shot_tasks,
    local_task_definition,
)
from pgprune_lightning.masking.tokenizer import check_tokens, tokens_beyond


@dataclass(frozen=True)
class ZeroShotScore:
    """How many questions of a task a model answers rightly.

    The paper's dense Llama-2-7B has the plain accuracy in every column (57.17 on HellaSwag, where
    the normalised one is 76), so that is what its tables are compared with. SliceGPT's own program
    reports the normalised one where there is one, and the paper's SliceGPT rows look like it.

    Args:
        accuracy: Share of examples whose right choice is the likeliest one, 0 to 1 (`acc`).
        stderr: Standard error of `accuracy`.
        normalized_accuracy: The same by log-likelihood per character of the choice (`acc_norm`);
            None for WinoGrande, whose choices score the same characters.
        normalized_stderr: Standard error of `normalized_accuracy`.
        num_examples: Examples that were scored.
    """

    accuracy: float
    stderr: float
    normalized_accuracy: float | None
    normalized_stderr: float | None
    num_examples: int


def evaluate_zero_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[ZeroShotTask],
    *,
    local_folder: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, ZeroShotScore]:
    """Score a model on tasks without examples in the prompt.

    A mask is measured by calling this inside `masked_model.masked(mask_U)`.

    Args:
        model: A causal language model: dense, masked or cut.
        tokenizer: The model's.
        tasks: Among `ZERO_SHOT_TASKS`.
        local_folder: Folder with one file `TASK.jsonl` for each; None: the harness's own tasks,
            from the hub.
        limit: Examples of each task, its first ones, at least 2; None: all.
        batch_size: Sequences in one forward pass.

    Returns:
        The score of each task, in the order given.

    Raises:
        UserError: As `check_zero_shot_tasks`, and if the data cannot be read, or have tokens that
            the model has no row for.

    Source: Paper, Sect. 4.4: the harness, zero-shot, as SliceGPT does.
    Differs: Probabilities are computed in float32 whatever the model's dtype: in bfloat16 close
        choices tie.
    """
    check_zero_shot_tasks(tasks, local_folder)
    if limit is not None and limit < 2:
        raise UserError(f"zero_shot: limit is {limit}; a standard error needs at least 2 examples.")
    if not tasks:
        return {}
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    with _quiet_harness(), _without_cache(model), _task_files(tasks, local_folder) as files:
        loaded = _load_tasks(tasks, files, str(local_folder or "the hub"))
        # The harness gives a tokenizer without a padding token one.
        harness_model = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            softmax_dtype="float32",
        )
        _check_as_it_encodes(harness_model, model.config.get_text_config().vocab_size)
        # Standard errors of means are in closed form; with 0 iterations there are none.
        results = evaluate(
            harness_model, loaded, limit=limit, bootstrap_iters=1, log_samples=False
        )["results"]
    return {task: _score(results[task]) for task in dict.fromkeys(tasks)}


def _check_as_it_encodes(harness_model: Any, num_rows: int) -> None:
    """Have the harness refuse questions with tokens that the model has no row for."""
    encode = harness_model.tok_encode

    def checked(*arguments: Any, **options: Any) -> list[int]:
        tokens: list[int] = encode(*arguments, **options)
        check_tokens(tokens, harness_model.tokenizer, num_rows, "zero_shot: a question")
        return tokens

    if tokens_beyond(harness_model.tokenizer, num_rows):
        harness_model.tok_encode = checked


@contextmanager
def _task_files(
    tasks: Sequence[ZeroShotTask], folder: Path | None
) -> Iterator[dict[ZeroShotTask, Path] | None]:
    """The examples of each task in UTF-8, which is all that the harness reads; None: the hub's."""
    if folder is None:
        yield None
        return
    names = list(dict.fromkeys(tasks))
    with as_utf8([folder / f"{name}.jsonl" for name in names]) as files:
        yield dict(zip(names, files, strict=True))


def _load_tasks(
    tasks: Sequence[ZeroShotTask], files: dict[ZeroShotTask, Path] | None, place: str
) -> dict[str, Any]:
    import lm_eval.tasks

    names = list(dict.fromkeys(tasks))
    harness_folder = Path(lm_eval.tasks.__file__).parent
    try:
        # Of the thousands of tasks that the harness knows, reading those of four folders is quick.
        manager = lm_eval.tasks.TaskManager(
            include_path=[harness_folder / name for name in HARNESS_FOLDERS], include_defaults=False
        )
        loaded: dict[str, Any] = manager.load(
            names
            if files is None
            else [local_task_definition(name, file) for name, file in files.items()]
        )
    except Exception as error:  # datasets and the hub raise errors of many kinds
        reason = textwrap.shorten(str(error), 200, placeholder=" ...").rstrip(" .")
        raise UserError(
            f"zero_shot: the data of {', '.join(names)} cannot be read from {place}: {reason}. "
            "Check the files, or the network; a local folder with one TASK.jsonl for each task "
            "works without the hub."
        ) from error
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
    return loaded


def _score(result: dict[str, Any]) -> ZeroShotScore:
    return ZeroShotScore(
        accuracy=float(result["acc,none"]),
        stderr=float(result["acc_stderr,none"]),
        normalized_accuracy=_optional(result.get("acc_norm,none")),
        normalized_stderr=_optional(result.get("acc_norm_stderr,none")),
        num_examples=int(result["sample_len"]),
    )


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


@contextmanager
def _without_cache(model: PreTrainedModel) -> Iterator[None]:
    """Keep no keys and values: nothing is generated, and a mask may skip an attention."""
    before = model.config.use_cache
    model.config.use_cache = False
    try:
        yield
    finally:
        model.config.use_cache = before


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Leave the harness its progress bars on a terminal, and nothing in a log file."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
