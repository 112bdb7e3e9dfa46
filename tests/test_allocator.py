"""Freed memory leaves the process, beside what is still in use."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from pgprune_lightning.training import pruning_module
from tests.tiny_runs import TinyRun

ROOT = Path(__file__).resolve().parents[1]
MEGABYTE = 2**20
HELD = """
import os
from pgprune_lightning.allocator import give_back_freed_memory

def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

before, blocks, kept = held(), [], []
for _ in range(400):
    blocks.append(bytearray(b"-") * 100_000)
    kept.append(bytearray(b"-") * 1_000)  # lies behind it, in the heap
del blocks
print(held() - before)
give_back_freed_memory()
print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_holes_in_the_heap_are_given_back() -> None:
    """40 MB of them; in a process of its own, whose heap is new."""
    command = [sys.executable, "-c", HELD]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    left_to_itself, given_back = (int(line) / MEGABYTE for line in ended.stdout.split())
    assert left_to_itself > 30, "the test shows nothing"
    assert given_back < 5


def test_every_validation_ends_with_it(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[None] = []
    monkeypatch.setattr(pruning_module, "give_back_freed_memory", lambda: given_back.append(None))
    trainer = tiny_run.trainer(max_steps=4, val_check_interval=2)
    trainer.fit(tiny_run.module(), datamodule=tiny_run.datamodule())
    assert len(given_back) == 3  # of the untrained mask, and two
