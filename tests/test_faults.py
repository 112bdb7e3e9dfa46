"""A sample of `make test-faults`, in a process that has no threads of other tests'."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = {
    **{"kills": 3, "file-kills": 4, "stops": 2, "soak": 200, "metrics": 2},
    **{"command-kills": 0, "pairs": 0, "disks": 0, "bad-input": 0},
    **{"plan-edits": 0, "lost-ranks": 0},
}


@pytest.mark.slow
def test_a_sample_of_all_faults_loses_nothing(pgprune_data: Path) -> None:
    few = (f"--{name}={number}" for name, number in SAMPLE.items())
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.faults", *few],
        cwd=ROOT,
        env=os.environ | {"PGPRUNE_DATA": str(pgprune_data)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.splitlines()[-1:] == ["faults: 12 tried, 12 survived, 0 lost"], (
        run.stdout + run.stderr
    )
    assert run.returncode == 0
