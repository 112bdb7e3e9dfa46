"""What a span of work takes: wall time, and memory at its peak."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import torch

SECONDS_BETWEEN_SAMPLES = 0.01

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # as proc(5) has it


class ResourceMeter:
    """Measures one span of work, or several as if they were one.

    Memory is CUDA memory allocated on the device, or, on another device, the resident size of the
    process; what was there before the span counts too, such as the model.

    Attributes:
        seconds: Wall time of the spans that have ended.
        peak_memory_bytes: Greatest memory in any of them; None where the system does not tell.
        memory_before_bytes: Least memory when one began, such as that of the model; or None.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.peak_memory_bytes: int | None = None
        self.memory_before_bytes: int | None = None
        self._peak: _CudaPeak | _ResidentPeak | None = None
        self._start = 0.0

    def start(self, device: torch.device) -> None:
        """Begin a span.

        Args:
            device: Where the work is done.
        """
        assert self._peak is None, "the span has begun"
        before = [b for b in (self.memory_before_bytes, memory_in_use(device)) if b is not None]
        self.memory_before_bytes = min(before, default=None)
        self._peak = _CudaPeak(device) if device.type == "cuda" else _ResidentPeak()
        self._start = time.perf_counter()

    def stop(self) -> None:
        """End the span, if there is one."""
        if self._peak is None:
            return
        peak = self._peak.read()  # first: it waits for the device
        self.seconds += time.perf_counter() - self._start
        if peak is not None:
            self.peak_memory_bytes = max(peak, self.peak_memory_bytes or 0)
        self._peak.close()
        self._peak = None

    def lap(self) -> tuple[float, int | None]:
        """Seconds and peak up to now; the span goes on."""
        if self._peak is None:
            return self.seconds, self.peak_memory_bytes
        peaks = [peak for peak in (self.peak_memory_bytes, self._peak.read()) if peak is not None]
        seconds = self.seconds + time.perf_counter() - self._start
        return seconds, max(peaks, default=None)


def memory_in_use(device: torch.device) -> int | None:
    """What `ResourceMeter` measures, now: bytes on the device, or of the process; or None."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status_bytes("VmRSS")


def peak_memory(device: torch.device) -> int | None:
    """Greatest memory until now: bytes on the device, or of the process; or None.

    Since the process began, or since a `ResourceMeter` last started: nothing is reset by asking.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes("VmHWM")


class _CudaPeak:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> int | None:
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)

    def close(self) -> None:
        """Nothing is held."""


class _ResidentPeak:
    """The kernel's own high-water mark where it may be reset, else samples of the resident size."""

    def __init__(self) -> None:
        self._sampler = None if _reset_high_water_mark() else _Sampler()

    def read(self) -> int | None:
        if self._sampler is not None:
            return self._sampler.read()
        return _status_bytes("VmHWM")

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.close()


class _Sampler:
    def __init__(self) -> None:
        self._peak = _status_bytes("VmRSS")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._done = threading.Event()
        self._thread.start()

    def read(self) -> int | None:
        self._sample()
        return self._peak

    def close(self) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(SECONDS_BETWEEN_SAMPLES):
            self._sample()

    def _sample(self) -> None:
        now = _status_bytes("VmRSS")
        if now is not None:
            self._peak = max(now, self._peak or 0)


def _reset_high_water_mark() -> bool:
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _status_bytes(name: str) -> int | None:
    """A size from the kernel's description of this process, in bytes; Linux only."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
