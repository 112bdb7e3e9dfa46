from itertools import islice
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgprune_lightning.data.data_module import (
    EvaluationBatchSampler,
    TrainingBatchSampler,
    epoch_permutation,
)


def _endless_sequence(num_blocks: int, seed: int, length: int) -> list[int]:
    """The definition: the permutations of all epochs, one after the other."""
    sequence: list[int] = []
    epoch = 0
    while len(sequence) < length:
        stream = np.random.Philox(np.random.SeedSequence([seed, epoch]))
        sequence += np.random.Generator(stream).permutation(num_blocks).tolist()
        epoch += 1
    return sequence


@settings(max_examples=60, deadline=None)
@given(
    num_blocks=st.integers(1, 23),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 4),
    start_step=st.integers(0, 30),
    seed=st.integers(0, 2**40),
)
def test_batches_are_slices_of_the_endless_sequence(
    num_blocks: int, batch_size: int, world_size: int, start_step: int, seed: int
) -> None:
    steps = 4
    sequence = _endless_sequence(num_blocks, seed, (start_step + steps) * world_size * batch_size)
    for rank in range(world_size):
        order = TrainingBatchSampler(
            num_blocks, batch_size, seed, rank, world_size, start_step=start_step
        )
        for step, batch in zip(range(start_step, start_step + steps), order, strict=False):
            start = (step * world_size + rank) * batch_size
            assert batch == sequence[start : start + batch_size]


def test_every_block_once_an_epoch_over_all_ranks() -> None:
    num_blocks, batch_size, world_size = 12, 2, 3
    ranks = [
        islice(TrainingBatchSampler(num_blocks, batch_size, 5, rank, world_size), 4)
        for rank in range(world_size)
    ]
    steps = [[block for batch in step for block in batch] for step in zip(*ranks, strict=True)]
    first, second = steps[0] + steps[1], steps[2] + steps[3]
    assert sorted(first) == sorted(second) == list(range(num_blocks))
    assert first != second


def test_a_later_start_sees_what_an_uninterrupted_run_sees() -> None:
    whole = list(islice(TrainingBatchSampler(10, 4, seed=3), 20))
    assert list(islice(TrainingBatchSampler(10, 4, seed=3, start_step=13), 7)) == whole[13:]


def test_a_far_start_is_as_quick_as_a_near_one() -> None:
    # 10^12 epochs on; stepping through them would not end.
    batch = next(iter(TrainingBatchSampler(4, 4, seed=0, start_step=10**12)))
    assert batch == epoch_permutation(4, 0, epoch=10**12).tolist()


def test_the_seed_changes_the_order() -> None:
    orders = {tuple(epoch_permutation(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_training_order_has_no_length() -> None:
    with pytest.raises(TypeError):
        len(TrainingBatchSampler(4, 2, seed=0))  # type: ignore[arg-type]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_blocks", [1, 6, 11])
def test_evaluation_sees_each_block_once_over_all_ranks(num_blocks: int, world_size: int) -> None:
    seen = []
    for rank in range(world_size):
        order = EvaluationBatchSampler(num_blocks, 2, rank, world_size)
        batches = list(order)
        assert len(batches) == len(order)
        assert all(len(batch) == 2 for batch in batches[:-1])
        assert len(batches) == ceil(ceil(num_blocks / world_size) / 2)  # the same on all ranks
        seen += [block for batch in batches for block in batch]
    assert sorted(seen) == list(range(num_blocks))
