"""Which blocks make up which batch: pure functions of seed, step, rank and world size."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


def epoch_permutation(num_blocks: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of all blocks in one epoch, a pure function of its arguments.

    Args:
        num_blocks: Number of blocks.
        seed: Seed of the run, at least 0.
        epoch: Number of the epoch, from 0.

    Returns:
        A permutation of 0 to num_blocks - 1, shape (num_blocks,), int64.
    """
    stream = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    return np.random.Generator(stream).permutation(num_blocks)


class TrainingBatchSampler(Sampler[list[int]]):
    """An endless, exactly resumable order in which each block is used once an epoch.

    The epochs' permutations stand one after the other in one endless sequence; at step t rank r of
    W takes its entries from (t * W + r) * B on, B of them. A batch may therefore span epochs, and
    a run that starts at a later step sees what an uninterrupted one would see. It has no length,
    so that Lightning takes the loader for endless.

    Args:
        num_blocks: Number of blocks, at least 1.
        batch_size: Blocks in a batch of one rank.
        seed: Seed of the run, at least 0.
        rank: This process, from 0.
        world_size: Number of processes.
        start_step: The step of the first batch, from 0.
    """

    def __init__(
        self,
        num_blocks: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ) -> None:
        assert num_blocks >= 1
        assert batch_size >= 1
        assert 0 <= rank < world_size
        self.num_blocks = num_blocks
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_step = start_step

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

    All ranks have equally many batches, because those that share a model must run it equally often;
    where one has fewer blocks, its last batch may be empty.

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
