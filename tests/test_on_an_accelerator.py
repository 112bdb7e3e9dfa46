"""No accelerator is needed: see `tests.simulated_accelerator`."""

import json
import subprocess
import sys

import pytest

from tests.accelerator_runs import CASES
from tests.tiny_models import CONFIGS

HARNESS = """
import torch
from tests.simulated_accelerator import simulated_accelerator
with simulated_accelerator() as device:
    ours, hosts = torch.arange(3.0, device=device), torch.ones(3)
    assert (ours * 2 + torch.tensor(1.0)).cpu().tolist() == [1.0, 3.0, 5.0]
    assert ours[torch.tensor([2, 0])].device == device
    for wrong in (
        lambda: ours + hosts,
        lambda: hosts[ours.long()],
        lambda: torch.rand(3, device=device, generator=torch.Generator()),
        lambda: torch.rand(3, generator=torch.Generator(device)),
        lambda: ours.numpy(),
    ):
        try:
            wrong()
        except (RuntimeError, TypeError):
            continue
        raise SystemExit("was not refused")
"""


def run_python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    folder = tmp_path_factory.mktemp("accelerator")
    printed = run_python("-m", "tests.accelerator_runs", str(folder))
    failed: dict[str, str | None] = json.loads(printed.splitlines()[-1])
    return failed


def test_what_a_gpu_refuses_is_refused() -> None:
    run_python("-c", HARNESS)


@pytest.mark.parametrize("case", [*CASES, "resumed", "back-propagated"])
def test_a_fit_mixes_no_devices(failures: dict[str, str | None], case: str) -> None:
    assert failures[case] is None, failures[case]


@pytest.mark.parametrize("family", CONFIGS)
def test_no_family_mixes_devices(failures: dict[str, str | None], family: str) -> None:
    assert failures[family] is None, failures[family]
