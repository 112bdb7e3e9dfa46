"""What the benchmark's tests time: a tiny model, and few, short sequences."""

from __future__ import annotations

import pytest

from pgprune_lightning.benchmark import Workload


@pytest.fixture
def workload() -> Workload:
    return Workload(batch_size=2, block_length=12, num_mask_samples=2)
