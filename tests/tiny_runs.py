"""Whole runs in a second: a tiny random Llama on disk, texts, and what a fit needs of them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer

    from pgprune_lightning.data.data_module import TokenBlocksDataModule
    from pgprune_lightning.training import PolicyGradientPruning

WORDS = [f"w{number}" for number in range(90)]


@dataclass(frozen=True)
class TinyRun:
    """Makes the parts of a fit of a tiny model; arguments given override the small defaults.

    Args:
        model: Folder of the model and its tokenizer.
        texts: Folder with `train.txt`, `valid.txt` and `test.txt`.
        folder: Where runs are written.
    """

    model: Path
    texts: Path
    folder: Path

    def module(self, **options: Any) -> PolicyGradientPruning:
        """The LightningModule; the options of its groups by their own names, such as `lr`."""
        from pgprune_lightning.initialization import Initialization
        from pgprune_lightning.training import PolicyGradientPruning

        defaults = {
            "base_model": str(self.model),
            "keep_ratio": 0.6,
            "lr": 0.01,
            "probability_bounds": (0.05, 0.95),
            "initialization": Initialization(num_blocks=8),
            "dtype": "float32",
        }
        return PolicyGradientPruning(**grouped(defaults | options))

    def datamodule(self, **options: Any) -> TokenBlocksDataModule:
        """The data module."""
        from pgprune_lightning.data.data_module import TokenBlocksDataModule
        from pgprune_lightning.data.text_source import TextSource

        defaults = {
            "train": TextSource(str(self.texts / "train.txt")),
            "validation": TextSource(str(self.texts / "valid.txt"), label="validation text"),
            "test": [TextSource(str(self.texts / "test.txt"), label="test text")],
            "tokenizer": str(self.model),
            "block_length": 16,
            "evaluation_block_length": 16,
            "batch_size": 2,
            "cache_dir": str(self.folder / "cache"),
        }
        return TokenBlocksDataModule(**(defaults | options))

    def trainer(self, callbacks: list[Callback] | None = None, **options: Any) -> Trainer:
        """A Trainer with the program's defaults, 4 steps, on the CPU."""
        from lightning.pytorch import Trainer

        from pgprune_lightning.training.trainer_options import TRAINER_DEFAULTS

        defaults = {
            "max_steps": 4,
            "val_check_interval": 2,
            "log_every_n_steps": 1,
            "accelerator": "cpu",
            "callbacks": callbacks or [],
            "default_root_dir": self.folder,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
        }
        return Trainer(**(TRAINER_DEFAULTS | defaults | options))

    def fit(self, callbacks: list[Callback] | None = None, **options: Any) -> PolicyGradientPruning:
        """Fit a default module and return it; options go to the Trainer."""
        module = self.module()
        self.trainer(callbacks, **options).fit(module, datamodule=self.datamodule())
        return module


def grouped(options: dict[str, Any]) -> dict[str, Any]:
    """Put options, by their own names, into the groups of `PolicyGradientPruning`."""
    from dataclasses import fields

    from pgprune_lightning.training import mask_evaluator
    from pgprune_lightning.training import options as groups

    left, found = dict(options), {}
    for name, group in {
        "units": groups.UnitOptions,
        "budget": groups.BudgetOptions,
        "update": groups.UpdateOptions,
        "objective": mask_evaluator.MaskEvaluator,
        "execution": groups.ExecutionOptions,
    }.items():
        given = [each.name for each in fields(group) if each.name in left]
        found[name] = group(**{each: left.pop(each) for each in given})
    return left | found


def write_tiny_model(folder: Path, name: str = "llama_gqa", seed: int = 1) -> Path:
    """Write one of `CONFIGS` with a word-level tokenizer, as `save_pretrained` does."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tests.tiny_models import make_tiny_model

    make_tiny_model(name, seed=seed).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(["<unk>", "</s>", *WORDS, "<s>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", bos_token="<s>"
    )
    tokenizer.save_pretrained(folder)
    return folder


def add_tokens(model: Path, folder: Path) -> Path:
    """Copy a tiny model with five tokens more: the last, `<x4>`, is one more than it has rows."""
    from transformers import AutoTokenizer

    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<x{number}>" for number in range(5)])
    tokenizer.save_pretrained(folder)
    return folder


def write_tiny_texts(folder: Path) -> Path:
    """Write three short texts of random words."""
    folder.mkdir(exist_ok=True)
    draw = random.Random(0)
    for name, num_words in (("train", 1600), ("valid", 130), ("test", 130)):
        (folder / f"{name}.txt").write_text(" ".join(draw.choices(WORDS, k=num_words)))
    return folder


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a word-level tokenizer."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short texts of random words."""
    return write_tiny_texts(tmp_path_factory.mktemp("tiny-texts"))


@pytest.fixture
def tiny_run(tiny_model_folder: Path, tiny_texts: Path, tmp_path: Path) -> TinyRun:
    """What a test needs to fit the tiny model."""
    return TinyRun(tiny_model_folder, tiny_texts, tmp_path)


@pytest.fixture
def parameter_bytes() -> Callable[[Any], bytes]:
    """Maps a torch module to all bytes of its parameters."""
    import torch

    def read(module: Any) -> bytes:
        flat = [p.detach().reshape(-1).view(torch.uint8) for p in module.parameters()]
        return torch.cat(flat).numpy().tobytes()

    return read
