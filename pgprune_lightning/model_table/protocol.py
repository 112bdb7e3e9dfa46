"""What is measured of every model, and how: results are comparable where this is equal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pgprune_lightning.data.text_source import TextSource
from pgprune_lightning.errors import UserError, about
from pgprune_lightning.evaluation import ZeroShotTask, check_zero_shot_tasks
from pgprune_lightning.masking.decoder_family import layout_of
from pgprune_lightning.masking.token_loss import TOKENS_PER_CHUNK

BosPerBlock = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class TextProtocol:
    """How perplexity is measured.

    Args:
        texts: What is read.
        lengths: Tokens of a block, BOS included.
        stride: Tokens between the beginnings of overlapping windows of the greatest length, in
            which the texts are read too; None: they are not.
        tokens: Tokens of each text at most, at each length; None: all.
        bos_per_block: Whether blocks begin with BOS; auto: where the model's family needs it.
        tokens_per_batch: Tokens that go through a model at once.
    """

    texts: tuple[TextSource, ...] = ()
    lengths: tuple[int, ...] = (128, 2048)
    stride: int | None = None
    tokens: int | None = None
    bos_per_block: BosPerBlock = "auto"
    tokens_per_batch: int = TOKENS_PER_CHUNK

    def check(self) -> None:
        """Refuse what could not be read, as far as it can be known without a tokenizer."""
        titles = [text.title for text in self.texts]
        for title in titles:
            if titles.count(title) > 1:
                raise UserError(f"--texts: two texts are called {title!r}; give each a NAME=TEXT.")
        for text in self.texts:
            with about("--texts"):
                text.check()
        if not self.lengths or min(self.lengths) < 2 or len(set(self.lengths)) < len(self.lengths):
            given = " ".join(map(str, self.lengths))
            raise UserError(
                f"--lengths: must be different numbers of tokens, at least 2, given {given}."
            )
        if self.stride is not None and not 1 <= self.stride <= max(self.lengths) - 2:
            raise UserError(
                f"--stride: must be from 1 to {max(self.lengths) - 2} tokens, so that windows of "
                f"the greatest length overlap, given {self.stride}."
            )
        if self.tokens is not None and self.tokens < max(self.lengths):
            raise UserError(
                f"--tokens: must be at least the greatest length, {max(self.lengths)}, given "
                f"{self.tokens}."
            )
        if self.tokens_per_batch < 1:
            raise UserError(f"--batch-tokens: must be at least 1, given {self.tokens_per_batch}.")

    def has_bos(self, model_type: str) -> bool:
        """Whether a model of this type reads blocks that begin with BOS."""
        if self.bos_per_block == "auto":
            layout = layout_of(model_type)
            return layout is not None and layout.needs_bos
        return self.bos_per_block == "always"


@dataclass(frozen=True)
class ZeroShotProtocol:
    """How zero-shot accuracy is measured.

    Args:
        tasks: What is asked.
        folder: Folder with a file `TASK.jsonl` for each task; None: the hub.
        limit: Examples of each task, its first ones; None: all.
    """

    tasks: tuple[ZeroShotTask, ...] = ()
    folder: Path | None = None
    limit: int | None = None

    def check(self) -> None:
        """Refuse what could not be asked."""
        if len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"--zero-shot: a task is given twice: {' '.join(self.tasks)}.")
        if self.limit is not None and self.limit < 2:
            raise UserError(
                f"--limit: a standard error needs at least 2 examples, given {self.limit}."
            )
        if not self.tasks and (self.folder is not None or self.limit is not None):
            raise UserError("--zero-shot-folder, --limit: they are for --zero-shot; give tasks.")
        check_zero_shot_tasks(self.tasks, self.folder)


@dataclass(frozen=True)
class SpeedProtocol:
    """How speed is measured.

    Args:
        batch_size: Sequences that are read and continued together.
        prompt_tokens: Tokens of a prompt.
        new_tokens: Tokens of a continuation.
        repetitions: Timed generations of each model, in turn with the others.
    """

    batch_size: int = 1
    prompt_tokens: int = 512
    new_tokens: int = 64
    repetitions: int = 5

    def check(self) -> None:
        """Refuse what could not be timed."""
        for name, number in asdict(self).items():
            if number < 1:
                raise UserError(f"--{name.replace('_', '-')}: must be at least 1, given {number}.")


@dataclass(frozen=True)
class Protocol:
    """All that is measured.

    Args:
        text: Perplexity; without texts, none.
        zero_shot: Zero-shot accuracy; without tasks, none.
        speed: Speed; None: it is not measured.
    """

    text: TextProtocol = TextProtocol()
    zero_shot: ZeroShotProtocol = ZeroShotProtocol()
    speed: SpeedProtocol | None = None

    def check(self) -> None:
        """Refuse what could not be measured, before a model is loaded.

        Raises:
            UserError: If a text or task is missing, or a number out of range.
        """
        self.text.check()
        self.zero_shot.check()
        if self.speed is not None:
            self.speed.check()

    def lengths(self) -> dict[str, int]:
        """Tokens that a model reads at once, at most, by the options that ask for it."""
        lengths = {"--lengths": max(self.text.lengths)} if self.text.texts else {}
        if self.speed is not None:
            generated = self.speed.prompt_tokens + self.speed.new_tokens
            lengths["--prompt-tokens and --new-tokens"] = generated
        return lengths

    def describe(self) -> dict[str, Any]:
        """The protocol as primitives."""
        text, zero_shot = self.text, self.zero_shot
        texts = {source.title: _where(source) for source in text.texts}
        folder = None if zero_shot.folder is None else str(zero_shot.folder)
        numbers = ("lengths", "stride", "tokens", "bos_per_block", "tokens_per_batch")
        return {
            "perplexity": {"texts": texts} | {name: asdict(text)[name] for name in numbers}
            if texts
            else None,
            "zero_shot": {
                "tasks": list(zero_shot.tasks),
                "folder": folder,
                "limit": zero_shot.limit,
            }
            if zero_shot.tasks
            else None,
            "speed": None if self.speed is None else asdict(self.speed),
        }


def _where(source: TextSource) -> dict[str, Any]:
    files = source.local_files()
    hub = {"path": source.path, "name": source.name, "split": source.split}
    return (hub if files is None else {"files": [file.name for file in files]}) | {
        "join": source.join
    }
