"""Freed memory leaves the process, beside what is still in use."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MEGABYTE = 2**20
HELD = """
import os
import sys
from pgprune_lightning.allocator import give_back_large_blocks

def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

if sys.argv[1] == "told":
    give_back_large_blocks()
before, kept = held(), []
for size in [12 * 2**20, 13 * 2**20] * 10:
    block = bytearray(b"-") * size
    kept.append(bytearray(b"-") * 1024)  # lies behind it, in the heap
    del block
print(held() - before)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def held(told: bool, **environment: str) -> float:
    """Megabytes that a process holds which has freed blocks of 12 and 13 MB, one at a time."""
    ended = subprocess.run(
        [sys.executable, "-c", HELD, "told" if told else "not told"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ended.stdout) / MEGABYTE


def test_large_blocks_are_given_back() -> None:
    left_to_itself = held(told=False)
    assert left_to_itself > 10, "the test shows nothing"
    assert held(told=True) < left_to_itself - 8


def test_what_the_environment_has_chosen_stands() -> None:
    large = str(32 * MEGABYTE)
    assert held(told=True, MALLOC_MMAP_THRESHOLD_=large) > 10
    tunable = f"glibc.malloc.mmap_threshold={large}"
    assert held(told=True, GLIBC_TUNABLES=tunable) > 10
