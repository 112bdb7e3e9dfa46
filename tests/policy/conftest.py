"""The model that the policy's tests prune: three layers, two kinds, units of unequal cost."""

import pytest

from pgprune_lightning.policy import UnitLayout


@pytest.fixture
def space() -> UnitLayout:
    sizes = [
        (0, "kv_group", 2, 70, 5),
        (0, "mlp_channel", 6, 9, 4),
        (1, "kv_group", 2, 70, 5),
        (1, "mlp_channel", 4, 9, 4),
        (2, "kv_group", 2, 70, 5),
        (2, "mlp_channel", 6, 9, 4),
    ]
    return UnitLayout.build(sizes, total_parameters=1000)
