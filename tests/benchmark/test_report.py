import re
from typing import Any

import pytest

from pgprune_lightning.benchmark.report import rows


def _result(memory: int | None) -> dict[str, Any]:
    rate = {
        "seconds": [1.0, 2.0],
        "median_seconds": 1.5,
        "least_seconds": 1.0,
        "greatest_seconds": 2.0,
        "steps_per_second": 0.667,
        "tokens_per_second": 1365,
    }
    return {
        "keep_ratio": 0.5,
        "reference": rate,
        "ours": rate,
        "ratio": 1.0,
        "execution": "compact",
        "flops_share_of_peak": 0.58,
        "peak_memory_over_weights_bytes": memory,
        "projected_seconds_15000_steps": 22500.0,
        "policy_share_of_step": 0.001,
    }


@pytest.mark.parametrize(
    ("memory", "shown"), [(2**30, "1.07 GB"), (75_325_440, "75.3 MB"), (None, "–")]
)
def test_memory_is_in_powers_of_ten(memory: int | None, shown: str) -> None:
    (_, ours, _) = rows(_result(memory)).splitlines()
    assert re.split(r" {2,}", ours)[-2:] == [shown, "6 h 15 min"]
