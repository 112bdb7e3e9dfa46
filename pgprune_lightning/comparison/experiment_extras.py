"""What an experiment file asks for beyond masks and perplexity: tasks, timing, tuning.

Every function takes what YAML has read and raises a `UserError` if it is something else.
"""

from __future__ import annotations

from typing import Any

from pgprune_lightning.comparison.experiment import (
    Experiment,
    FinetuneOptions,
    LatencyOptions,
)
from pgprune_lightning.comparison.yaml_values import choice, integers, mapping, text, texts
from pgprune_lightning.console import OneLineErrorParser
from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation import ZERO_SHOT_TASKS, ZeroShotTask
from pgprune_lightning.finetuning import ALPACA, LoraOptions


def read_zero_shot(value: Any) -> tuple[ZeroShotTask, ...]:
    """Names of tasks, each once."""
    names = dict.fromkeys(texts(value, "zero_shot"))
    return tuple(choice(name, ZERO_SHOT_TASKS, "zero_shot") for name in names)


def read_limit(value: Any) -> int | None:
    """Examples of a task, or null for all."""
    # A standard error needs two examples.
    return None if value is None else integers([value], "zero_shot_limit", 2)[0]


def read_latency(value: Any) -> LatencyOptions | None:
    """What is timed, or null."""
    if value is None:
        return None
    given = mapping(value, "latency", list(LatencyOptions.__dataclass_fields__))
    sizes = {name: integers([size], f"latency.{name}", 1)[0] for name, size in given.items()}
    return LatencyOptions(**sizes)


def read_finetune(value: Any) -> FinetuneOptions | None:
    """Records and adapter, or null."""
    if value is None:
        return None
    names = ("records", *LoraOptions.__dataclass_fields__)
    given = dict(mapping(value, "finetune", names))
    records = text(given.pop("records", ALPACA), "finetune.records")
    parser = OneLineErrorParser()
    parser.add_class_arguments(LoraOptions, "finetune")
    lora = parser.parse_object({"finetune": given}).finetune.as_dict()
    if lora["target_modules"] is not None:
        lora["target_modules"] = tuple(lora["target_modules"])
    return FinetuneOptions(records, LoraOptions(**lora))


def check_finetune(experiment: Experiment) -> None:
    """Refuse a row that asks to be tuned where the file does not say how."""
    for name, method in experiment.methods.items():
        if method.finetune and experiment.finetune is None:
            raise UserError(
                f"methods.{name}.finetune: the file does not say how; give it the key finetune, "
                "such as finetune: {rank: 16}."
            )
