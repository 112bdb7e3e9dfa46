"""What an experiment compares.

Methods are rows, settings are columns, and a row may have several seeds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pgprune_lightning.evaluation import ZeroShotTask
from pgprune_lightning.recovery import ALPACA, LoraOptions

MethodKind = Literal["dense", "metric", "slicegpt", "learned", "backpropagated"]
LEARNING_KINDS: tuple[MethodKind, ...] = ("learned", "backpropagated")
"""Those that are a whole `fit`."""
PictureKind = Literal["bars", "lines", "hamming", "sparsity"]

Options = dict[str, Any]
"""Options of `fit`, nested as in a configuration file."""


@dataclass(frozen=True)
class Method:
    """A row.

    Args:
        kind: `dense`: nothing is pruned; `metric`: the untrained mask; `learned`: the best plan of
            a whole `fit`; `slicegpt`: rotation and slicing, which is no mask; `backpropagated`: the
            best plan of a `fit` by gradients through the model (`research/`).
        options: Options of `fit` for this row.
        finetune: Whether the pruned model is tuned before it is measured; None: where the
            experiment says how, and something is pruned.
        recipe: Configurations over the experiment's recipe, under all options.
    """

    kind: MethodKind
    options: Options
    finetune: bool | None = None
    recipe: tuple[Path, ...] = ()

    @property
    def has_mask(self) -> bool:
        """Whether the result is a mask over the model's units."""
        return self.kind in ("metric", *LEARNING_KINDS)


@dataclass(frozen=True)
class Picture:
    """A picture of the results.

    Args:
        kind: `bars`: a value for each method; `lines`: a value over the settings, a line for each
            method; `hamming`: how far masks are from `method`'s, layer by layer; `sparsity`: what
            `method` removes of each layer.
        value: What bars and lines show, such as `perplexity_128`.
        x_label: What the settings are.
        method: Whose mask is looked at; None: the last learned one, else the last with a mask.
    """

    kind: PictureKind
    value: str
    x_label: str
    method: str | None


@dataclass(frozen=True)
class FinetuneOptions:
    """How cut models are tuned.

    Args:
        records: Instructions and answers: a file of JSON lines or Parquet, or a hub dataset;
            environment variables are expanded.
        lora: The adapter and its training. Its seed is its own: the same in every trial.
    """

    records: str = ALPACA
    lora: LoraOptions = field(default_factory=LoraOptions)


@dataclass(frozen=True)
class LatencyOptions:
    """What is timed; see `evaluation.measure_latency`.

    Args:
        batch_size: Sequences in a pass.
        sequence_length: Tokens of a sequence.
        repetitions: Passes that are timed.
    """

    batch_size: int = 4
    sequence_length: int = 2048
    repetitions: int = 10


@dataclass(frozen=True)
class Experiment:
    """An experiment file, read and checked.

    Args:
        title: Heads the table and the pictures.
        recipe: Configurations that `fit` takes; later ones win.
        options: Options of `fit` over the recipe, for every trial.
        settings: Columns: options of `fit` by label.
        methods: Rows, by name.
        seeds: Seeds of what is random; all else is computed with the first.
        evaluation_lengths: Block lengths at which perplexity is measured, in tokens.
        evaluation_tokens: Tokens of the text that are read at each length, at most; None: as many
            as the recipe reads.
        zero_shot: Names of zero-shot tasks.
        pictures: Pictures to draw.
        zero_shot_folder: Folder with a file `TASK.jsonl` for each task, read instead of the hub
            where it exists; environment variables are expanded.
        zero_shot_limit: Examples of each task, its first ones; None: all.
        latency: Forward passes that are timed; None: none are.
        finetune: How pruned models are tuned before they are measured; None: they are not.
    """

    title: str
    recipe: tuple[Path, ...]
    options: Options
    settings: dict[str, Options]
    methods: dict[str, Method]
    seeds: tuple[int, ...]
    evaluation_lengths: tuple[int, ...]
    evaluation_tokens: int | None
    zero_shot: tuple[ZeroShotTask, ...]
    pictures: tuple[Picture, ...]
    zero_shot_folder: str | None = None
    zero_shot_limit: int | None = None
    latency: LatencyOptions | None = None
    finetune: FinetuneOptions | None = None

    @property
    def local_zero_shot_folder(self) -> Path | None:
        """Where the tasks are read; None: from the hub."""
        folder = Path(os.path.expandvars(self.zero_shot_folder or "")).expanduser()
        return folder if self.zero_shot_folder and folder.is_dir() else None

    def finetune_of(self, method: str) -> FinetuneOptions | None:
        """How a row is tuned; None: it is measured as it was pruned."""
        row = self.methods[method]
        wanted = row.kind != "dense" if row.finetune is None else row.finetune
        return self.finetune if wanted else None

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Setting and method of every trial, setting by setting."""
        return ((setting, method) for setting in self.settings for method in self.methods)

    def layers(self, setting: str, method: str) -> list[Options]:
        """Options of a trial over the recipe, in the order in which later ones win."""
        layers = [self.options, self.settings[setting], self.methods[method].options]
        return [layer for layer in layers if layer]
