"""A sample of `make test-faults`, in a process that has no threads of other tests'."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_kills_stops_and_a_soak_lose_nothing(pgprune_data: Path) -> None:
    few = ("--kills=5", "--stops=2", "--soak-steps=200", "--no-bad-input")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.faults", *few],
        cwd=ROOT,
        env=os.environ | {"PGPRUNE_DATA": str(pgprune_data)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.splitlines()[-1:] == ["faults: 8 tried, 8 survived, 0 lost"], (
        run.stdout + run.stderr
    )
    assert run.returncode == 0
