"""What a span of work takes."""

import mmap
import time

import pytest
import torch

from pgprune_lightning.evaluation import resources
from pgprune_lightning.evaluation.resources import ResourceMeter

CPU = torch.device("cpu")
MEBIBYTES_200 = 200 * 2**20


def _written(size: int) -> mmap.mmap:
    """Memory that is resident until it is closed: the allocator may keep what others have freed."""
    block = mmap.mmap(-1, size)
    for page in range(0, size, mmap.PAGESIZE):
        block[page] = 1  # a page counts when it is written
    return block


def _peak_of(size: int) -> int:
    """The peak of a span in which so many bytes are written, and given back."""
    meter = ResourceMeter()
    meter.start(CPU)
    block = _written(size)
    time.sleep(5 * resources.SECONDS_BETWEEN_SAMPLES)
    block.close()
    meter.stop()
    if meter.peak_memory_bytes is None:
        pytest.skip("this system does not tell the resident size")
    return meter.peak_memory_bytes


@pytest.mark.parametrize("may_reset", [True, False])
def test_the_peak_is_that_of_the_span(may_reset: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not may_reset:
        monkeypatch.setattr(resources, "_reset_high_water_mark", lambda: False)
    small_before = _peak_of(4096)
    assert _peak_of(MEBIBYTES_200) - small_before == pytest.approx(MEBIBYTES_200, rel=0.1)
    small_after = _peak_of(4096)
    assert abs(small_after - small_before) < MEBIBYTES_200 / 10, "an earlier span's peak is gone"


def test_spans_add_up() -> None:
    meter = ResourceMeter()
    for _ in range(2):
        meter.start(CPU)
        time.sleep(0.02)
        meter.stop()
        time.sleep(0.1)
    meter.stop()
    assert 0.04 <= meter.seconds < 0.14
    assert meter.lap() == (meter.seconds, meter.peak_memory_bytes)


def test_a_lap_does_not_end_the_span() -> None:
    meter = ResourceMeter()
    meter.start(CPU)
    first, _ = meter.lap()
    time.sleep(0.01)
    second, peak = meter.lap()
    assert second >= first + 0.01
    meter.stop()
    assert meter.seconds >= second
    assert meter.peak_memory_bytes == peak or peak is not None


def test_what_was_there_before_is_told_apart() -> None:
    held = _written(MEBIBYTES_200)
    meter = ResourceMeter()
    meter.start(CPU)
    meter.stop()
    if meter.memory_before_bytes is None or meter.peak_memory_bytes is None:
        pytest.skip("this system does not tell the resident size")
    assert meter.memory_before_bytes > MEBIBYTES_200
    assert meter.peak_memory_bytes - meter.memory_before_bytes < MEBIBYTES_200 / 10
    first = meter.memory_before_bytes
    held.close()
    meter.start(CPU)
    meter.stop()
    assert meter.memory_before_bytes < first - 0.9 * MEBIBYTES_200, "the least of all spans"


def test_a_system_that_does_not_tell_gives_none(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_reset_high_water_mark", lambda: False)
    monkeypatch.setattr(resources, "_status_bytes", lambda _name: None)
    meter = ResourceMeter()
    meter.start(CPU)
    meter.stop()
    assert meter.peak_memory_bytes is None
    assert meter.memory_before_bytes is None


@pytest.mark.gpu
def test_on_a_gpu_the_peak_is_what_was_allocated() -> None:
    device = torch.device("cuda")
    meter = ResourceMeter()
    meter.start(device)
    before = torch.cuda.memory_allocated(device)
    block = torch.zeros(MEBIBYTES_200, dtype=torch.uint8, device=device)
    del block
    meter.stop()
    assert meter.memory_before_bytes == before
    assert meter.peak_memory_bytes == before + MEBIBYTES_200
