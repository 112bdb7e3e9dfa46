"""The texts of a run as Lightning batches: token blocks, in an order that can be resumed."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase

from pgprune_lightning.data.text_source import SourceUnavailable, TextSource
from pgprune_lightning.data.token_blocks import TokenBlocks, build_token_blocks, open_token_blocks
from pgprune_lightning.errors import UserError, about, warn_once
from pgprune_lightning.stop_signals import ignore_stop_signals

Blocks = TypeVar("Blocks")


def epoch_permutation(num_blocks: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Shuffle the blocks of one epoch, (num_blocks,) int64: a pure function of its arguments."""
    stream = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    return np.random.Generator(stream).permutation(num_blocks)


@dataclass(eq=False)
class TrainingBatchSampler(Sampler[list[int]]):
    """An endless, exactly resumable order in which each block is used once an epoch.

    The permutations of the epochs form one endless sequence. At step t, rank r of W takes B entries
    from (t * W + r) * B on. A batch may therefore span epochs, and a run that starts at a later
    step sees the batches of an uninterrupted one. The sampler has no length, so Lightning treats
    the loader as endless.

    Args:
        num_blocks: Number of blocks, at least 1.
        batch_size: Blocks in a batch of one rank.
        seed: Seed of the run, at least 0.
        rank: This process, from 0.
        world_size: Number of processes.
        start_step: The step of the first batch, from 0.
    """

    num_blocks: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    start_step: int = 0

    def __post_init__(self) -> None:
        assert self.num_blocks >= 1
        assert self.batch_size >= 1
        assert 0 <= self.rank < self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches from start_step on, without end."""
        stride = self.world_size * self.batch_size
        position = self.start_step * stride + self.rank * self.batch_size
        epoch, order = -1, np.empty(0, dtype=np.int64)
        while True:
            batch: list[int] = []
            for entry in range(position, position + self.batch_size):
                if entry // self.num_blocks != epoch:
                    epoch = entry // self.num_blocks
                    order = epoch_permutation(self.num_blocks, self.seed, epoch)
                batch.append(int(order[entry % self.num_blocks]))
            yield batch
            position += stride


class EvaluationBatchSampler(Sampler[list[int]]):
    """Each block exactly once over all ranks: nothing is dropped, padded or repeated.

    All ranks have the same number of batches, because ranks that share a model must run it equally
    often. The last batch of a rank with fewer blocks may be empty.

    Args:
        num_blocks: Number of blocks.
        batch_size: Blocks in a batch; the last one may be shorter.
        rank: This process, from 0; it takes the blocks rank, rank + world_size, ...
        world_size: Number of processes.
    """

    def __init__(
        self, num_blocks: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        assert batch_size >= 1
        assert 0 <= rank < world_size
        self.blocks = range(rank, num_blocks, world_size)
        self.most_blocks = -(-num_blocks // world_size)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of this rank."""
        for start in range(0, self.most_blocks, self.batch_size):
            yield list(self.blocks[start : start + self.batch_size])

    def __len__(self) -> int:
        """Number of batches, the same on all ranks."""
        return -(-self.most_blocks // self.batch_size)


class TokenBlocksDataModule(LightningDataModule):
    """Blocks of tokens for training, validation and any number of test texts.

    Args:
        train: Text of the losses of training and of the calibration of initial metrics.
        validation: Text that decides which mask is the best.
        test: Texts of the reported results; each needs its own label.
        tokenizer: Location of the tokenizer: a hub id, a folder, a GGUF file, or
            "package:DIST/FILE.gguf"; by default that of the model. In Python a loaded tokenizer
            is accepted too.
        block_length: Length of a training block in tokens, from 2 to the number of positions that
            the model has learned.
        evaluation_block_length: Length of a validation or test block in tokens, at least 2.
        batch_size: Training blocks (sequences) in a batch of one process.
        evaluation_batch_size: Validation or test blocks (sequences) in a batch of one process.
        num_workers: Additional processes that load batches; 0: none.
        seed: Seed of the order of the training text, at least 0.
        cache_dir: Folder for token blocks; by default the environment variable PGPRUNE_CACHE, or
            pgprune_lightning in the user's cache folder.
        bos_per_block: Begin every block with the BOS token; None: only for families that need it.
            Without it the perplexity of Gemma is several times too high.
    """

    def __init__(
        self,
        train: TextSource,
        validation: TextSource,
        test: list[TextSource] | None = None,
        tokenizer: str | None = None,
        block_length: int = 128,
        evaluation_block_length: int = 128,
        batch_size: int = 8,
        evaluation_batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
        bos_per_block: bool | None = None,
    ) -> None:
        super().__init__()
        self.train = train
        self.validation = validation
        self.test = list(test or [])
        self.tokenizer: str | PreTrainedTokenizerBase | None = tokenizer
        self.block_length = block_length
        self.evaluation_block_length = evaluation_block_length
        self.batch_size = batch_size
        self.evaluation_batch_size = evaluation_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.cache_dir = cache_dir
        self.bos_per_block = bos_per_block
        self.train_blocks: TokenBlocks | None = None
        self.validation_blocks: TokenBlocks | None = None
        self.test_blocks: list[TokenBlocks] = []
        self._check()

    def _check(self) -> None:
        lowest = {
            "block_length": 2,
            "evaluation_block_length": 2,
            "batch_size": 1,
            "evaluation_batch_size": 1,
            "num_workers": 0,
            "seed": 0,
        }
        for name, minimum in lowest.items():
            value = getattr(self, name)
            if value < minimum:
                raise UserError(f"data.{name} must be at least {minimum}, not {value}")
        for role in ("train", "validation"):
            if getattr(self, role).optional:
                raise UserError(f"data.{role}: the text cannot be optional: every run reads it")
        labels = [source.title for source in self.test]
        for label in labels:
            if labels.count(label) > 1:
                raise UserError(
                    f"data.test: two texts are called {label!r}; give each its own label"
                )
        for option, source in self._texts():
            with about(option):
                source.check()
        self._warn_of_shared_documents()

    def _texts(self) -> list[tuple[str, TextSource]]:
        """All texts, each with its option."""
        tests = [(f"data.test[{number}]", source) for number, source in enumerate(self.test)]
        return [("data.train", self.train), ("data.validation", self.validation), *tests]

    def _warn_of_shared_documents(self) -> None:
        train, validation, *tests = self._texts()
        for first, other in [(train, validation), *product((train, validation), tests)]:
            (learned, source), (measured, text) = first, other
            if source.shares_documents(text):
                warn_once(
                    f"{learned} and {measured} share documents: parts {list(source.part)} and "
                    f"{list(text.part)} of {text.path}. A mask is then measured on what it was "
                    "learned or chosen by; give parts that do not overlap, or other texts."
                )

    def prepare_data(self) -> None:
        """Make the token blocks that the cache does not hold yet, in one process a machine.

        Raises:
            UserError: A text that is not optional is missing, cannot be read or is too short.
        """
        self._choose_bos()
        stage = self.trainer.state.fn if self.trainer is not None else None
        train, validation, *tests = self._texts()
        self._blocks(build_token_blocks, *train, training=True)
        if stage != "test":
            self._blocks(build_token_blocks, *validation)
        for option, source in tests if stage != "validate" else []:
            try:
                self._blocks(build_token_blocks, option, source)
            except SourceUnavailable as error:
                if not source.optional:
                    raise
                warnings.warn(f"{error}. The text is optional and left out.", stacklevel=2)

    def setup(self, stage: str | None = None) -> None:
        """Open the blocks that `prepare_data` made; those of the training text always, for metrics.

        Args:
            stage: "fit", "validate" or "test"; None: all texts.
        """
        self._choose_bos()
        train, validation, *tests = self._texts()
        self.train_blocks = self._open(*train, training=True)
        if stage != "test":
            self.validation_blocks = self._open(*validation)
        if stage != "validate":
            opened = [self._open(*text) for text in tests]
            self.test_blocks = [blocks for blocks in opened if blocks is not None]

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Endless batches, int64 (B, L), from the trainer's current step on."""
        blocks = self._required(self.train_blocks)
        rank, world_size = self._place()
        step = self.trainer.global_step if self.trainer is not None else 0
        order = TrainingBatchSampler(
            len(blocks), self.batch_size, self.seed, rank, world_size, start_step=step
        )
        return self._loader(blocks, order)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Each validation block once over all processes; the last batch may be short."""
        return self._evaluation_loader(self._required(self.validation_blocks))

    def test_dataloader(self) -> list[DataLoader[Tensor]]:
        """One loader a test text, in the order of `test_labels`."""
        return [self._evaluation_loader(blocks) for blocks in self.test_blocks]

    def calibration_batches(self, num_blocks: int, batch_size: int) -> Iterator[Tensor]:
        """Training blocks for initial metrics, the same on every process.

        Args:
            num_blocks: Number of blocks (sequences) in all.
            batch_size: Blocks in a batch; the last one may be shorter.

        Returns:
            Token ids, each of shape (B, L), int64.

        Raises:
            UserError: The training text has fewer blocks; raised by the call, not by the first
                batch.
        """
        blocks = self._required(self.train_blocks)
        if num_blocks > len(blocks):
            raise UserError(
                f"initialization.num_blocks: {num_blocks} blocks are wanted for calibration, but "
                f"data.train ({blocks.label}) has only {len(blocks)}; ask for fewer, or give more "
                "text"
            )
        order = epoch_permutation(len(blocks), self.seed, epoch=0)[:num_blocks].tolist()
        return (
            torch.stack([blocks[index] for index in order[start : start + batch_size]])
            for start in range(0, num_blocks, batch_size)
        )

    @property
    def validation_label(self) -> str:
        """The name of the validation text."""
        return self.validation.title

    @property
    def test_labels(self) -> list[str]:
        """The names of the available test texts, in the order of their loaders."""
        return [blocks.label for blocks in self.test_blocks]

    def _choose_bos(self) -> None:
        """Ask the model whether it needs the token, unless the user has decided."""
        if self.bos_per_block is None:
            module = getattr(self.trainer, "lightning_module", None)
            self.bos_per_block = bool(getattr(module, "needs_bos", False))

    def _blocks(
        self,
        build_or_open: Callable[..., Blocks],
        option: str,
        source: TextSource,
        *,
        training: bool = False,
    ) -> Blocks:
        tokenizer = self.load_tokenizer()
        with about(option):
            return build_or_open(
                source,
                tokenizer,
                self.block_length if training else self.evaluation_block_length,
                seed=self.seed if training else None,
                bos_per_block=bool(self.bos_per_block),
                cache_dir=self.cache_dir,
            )

    def _open(
        self, option: str, source: TextSource, *, training: bool = False
    ) -> TokenBlocks | None:
        try:
            blocks = self._blocks(open_token_blocks, option, source, training=training)
        except SourceUnavailable:
            blocks = None
        if blocks is None and not source.optional:
            raise RuntimeError(f"no token blocks of {source.title}: call prepare_data() first")
        return blocks

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded at the first call."""
        if self.tokenizer is None:
            raise UserError(
                "data.tokenizer: no tokenizer; name the model's hub id, folder or GGUF file"
            )
        if isinstance(self.tokenizer, str):
            from pgprune_lightning.masking.tokenizer import load_tokenizer

            self.tokenizer = load_tokenizer(self.tokenizer)
        return self.tokenizer

    def check_tokens(self, num_rows: int) -> None:
        """Refuse open texts with tokens beyond the model's embedding.

        Args:
            num_rows: Rows of the model's embedding.

        Raises:
            UserError: A text has such a token.
        """
        from pgprune_lightning.masking.tokenizer import check_tokens

        texts = [("data.train", self.train_blocks), ("data.validation", self.validation_blocks)]
        for option, blocks in [*texts, *(("data.test", blocks) for blocks in self.test_blocks)]:
            if blocks is not None:
                with about(option):
                    check_tokens(blocks.array, self.load_tokenizer(), num_rows, blocks.label)

    def _place(self) -> tuple[int, int]:
        """Rank of this process, and the number of processes."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _evaluation_loader(self, blocks: TokenBlocks) -> DataLoader[Tensor]:
        order = EvaluationBatchSampler(len(blocks), self.evaluation_batch_size, *self._place())
        return self._loader(blocks, order)

    def _loader(self, blocks: TokenBlocks, order: Sampler[list[int]]) -> DataLoader[Tensor]:
        return DataLoader(
            blocks,
            batch_sampler=order,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_leave_stopping_to_the_run,
            pin_memory=torch.cuda.is_available(),
            collate_fn=partial(_joined, block_length=blocks.array.shape[1]),
            # Its own: a loader draws from the global generator whenever it is started.
            generator=torch.Generator(),
        )

    @staticmethod
    def _required(blocks: TokenBlocks | None) -> TokenBlocks:
        if blocks is None:
            raise RuntimeError("the token blocks are not open: call prepare_data() and setup()")
        return blocks


def _joined(blocks: list[Tensor], block_length: int) -> Tensor:
    """Token ids of a batch, (B, L), int64; B may be 0."""
    return torch.stack(blocks) if blocks else torch.empty((0, block_length), dtype=torch.int64)


def _leave_stopping_to_the_run(worker: int) -> None:
    """A scheduler signals workers too; the end of one would interrupt the present step."""
    del worker
    ignore_stop_signals()
