"""Every part is timed at every number of units."""

import torch

from research.unit_scaling import time_by_units


def test_every_number_of_units_is_timed() -> None:
    scaling = time_by_units(
        torch.device("cpu"), keep_ratio=0.5, num_mask_samples=2, lr=1e-3, units=(10, 1000)
    )
    assert [entry["units"] for entry in scaling] == [10, 1000]
    for entry in scaling:
        parts = {"sample_seconds", "estimate_seconds", "update_seconds"}
        assert set(entry) == {"units"} | parts
        assert all(0 < entry[part] < 10 for part in parts)
