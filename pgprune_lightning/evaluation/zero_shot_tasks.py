"""The five zero-shot tasks of the paper, and how the harness reads them from local files.

Prompts, choices and answers are those of lm-eval's own tasks of the same names; only the place of
the data differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from pgprune_lightning.data.documents import as_utf8
from pgprune_lightning.errors import UserError, about

ZeroShotTask = Literal["piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge"]
ZERO_SHOT_TASKS: tuple[ZeroShotTask, ...] = get_args(ZeroShotTask)
"""In the order of the paper's tables."""
HARNESS_FOLDERS = ("piqa", "hellaswag", "winogrande", "arc")
"""Where lm-eval keeps its own definitions of them, under `lm_eval/tasks`."""

Example = dict[str, Any]


@dataclass(frozen=True)
class LocalTask:
    """How the examples of one `.jsonl` file become questions; names and templates are lm-eval's.

    Args:
        fields: What every line of the file holds.
        text: Context of the choices, or the number of the right context.
        choices: What the contexts or the continuations are.
        target: Number of the right choice, or the continuation that all contexts share.
        normalized: Whether accuracy by likelihood per character is reported too.
    """

    fields: tuple[str, ...]
    text: str | Callable[[Example], int]
    choices: str | Callable[[Example], list[str]]
    target: str | Callable[[Example], str]
    normalized: bool = True


def _winogrande_answer(example: Example) -> int:
    return int(example["answer"]) - 1


def _winogrande_contexts(example: Example) -> list[str]:
    """The sentence up to the gap, each option in it: the rest of the sentence is scored."""
    before = example["sentence"].partition("_")[0]
    return [before + example["option1"], before + example["option2"]]


def _winogrande_continuation(example: Example) -> str:
    rest: str = example["sentence"].partition("_")[2]
    return rest.strip()


_ARC = LocalTask(
    fields=("question", "choices", "gold"),
    text="Question: {{question}}\nAnswer:",
    choices="choices",
    target="gold",
)
_LOCAL_TASKS: dict[ZeroShotTask, LocalTask] = {
    "piqa": LocalTask(
        fields=("goal", "sol1", "sol2", "label"),
        text="Question: {{goal}}\nAnswer:",
        choices="{{[sol1, sol2]}}",
        target="label",
    ),
    "hellaswag": LocalTask(
        fields=("query", "choices", "gold"), text="{{query}}", choices="choices", target="gold"
    ),
    "winogrande": LocalTask(
        fields=("sentence", "option1", "option2", "answer"),
        text=_winogrande_answer,
        choices=_winogrande_contexts,
        target=_winogrande_continuation,
        normalized=False,  # both choices score the same characters
    ),
    "arc_easy": _ARC,
    "arc_challenge": _ARC,
}


def check_zero_shot_tasks(tasks: Sequence[str], local_folder: Path | None) -> None:
    """Refuse what `evaluate_zero_shot` could not do, before a model is loaded.

    Args:
        tasks: Names of tasks.
        local_folder: Folder with one file `TASK.jsonl` for each; None: the hub.

    Raises:
        UserError: If lm-eval is not installed, a task is unknown, or its file is missing, empty or
            of another shape.
    """
    for task in tasks:
        if task not in ZERO_SHOT_TASKS:
            raise UserError(f"zero_shot: {task!r} is not one of {', '.join(ZERO_SHOT_TASKS)}.")
        if local_folder is not None:
            _check_file(local_folder / f"{task}.jsonl", _LOCAL_TASKS[task].fields)
    if tasks and find_spec("lm_eval") is None:
        raise UserError(
            "zero_shot: the tasks are run by lm-eval, which is not installed; install it with: "
            "pip install -c constraints.txt -e '.[zero-shot]'"
        )


def _check_file(file: Path, fields: tuple[str, ...]) -> None:
    if not file.is_file():
        raise UserError(
            f"zero_shot: there is no file {file}; the folder holds one TASK.jsonl for each task, "
            "and without a folder the tasks are read from the hub."
        )
    with about("zero_shot"), as_utf8([file]) as copies, copies[0].open(encoding="utf-8") as lines:
        first_line = lines.readline()
    try:
        example = json.loads(first_line)
    except ValueError:
        example = None
    if not isinstance(example, dict) or not set(fields) <= example.keys():
        raise UserError(
            f"zero_shot: the first line of {file} is no JSON object with the fields "
            f"{', '.join(fields)}; every line must be one."
        )


def local_task_definition(task: ZeroShotTask, file: Path) -> dict[str, Any]:
    """Define a task on a local file, as lm-eval's `TaskManager` takes it.

    Args:
        task: Name of the task.
        file: Its examples, JSON lines in UTF-8.
    """
    local = _LOCAL_TASKS[task]
    metrics = ["acc", "acc_norm"] if local.normalized else ["acc"]
    return {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(file.resolve())}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "doc_to_text": local.text,
        "doc_to_choice": local.choices,
        "doc_to_target": local.target,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in metrics
        ],
    }
