"""A function of tensors, called by replaying a CUDA graph of it.

A small model's forward pass is hundreds of small kernels, and the host takes longer to launch them
than the GPU to run them. A graph launches all of them at once.

It has never run on a GPU: what is tested is everything around the capture.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_WARM_UPS = 3
"""Calls before a capture: libraries choose and load their kernels in the first ones."""


class CudaGraphFunction:
    """Calls a function on buffers of its own, from a graph where it could be captured.

    Args:
        function: Maps tensors to a tensor; for the same shapes always by the same operations, none
            of which the host reads.
        capture: Whether to capture CUDA graphs, one for each combination of shapes; otherwise the
            function is called as it is, on the same buffers.
    """

    def __init__(self, function: Callable[..., Tensor], *, capture: bool) -> None:
        self._function = function
        self._capture = capture
        self._recordings: dict[tuple[torch.Size, ...], _Recording] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's value, in memory of its own.

        Args:
            *inputs: Tensors whose dtypes and devices are always the same; shapes may differ.
        """
        shapes = tuple(given.shape for given in inputs)
        recording = self._recordings.get(shapes)
        if recording is None:
            recording = self._recordings[shapes] = self._record(inputs)
        for buffer, given in zip(recording.buffers, inputs, strict=True):
            buffer.copy_(given)
        if recording.graph is None:
            return self._function(*recording.buffers)
        recording.graph.replay()
        # The next replay writes over it.
        return recording.output.clone()

    def forget(self) -> None:
        """Give buffers and graphs back; what is called again is captured again."""
        self._recordings.clear()

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recording:
        buffers = [given.clone(memory_format=torch.contiguous_format) for given in inputs]
        if not self._capture:
            return _Recording(buffers, None, buffers[0])
        _warm_up(self._function, buffers)
        try:
            return _Recording(buffers, *_captured(self._function, buffers))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._capture = False
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"No CUDA graph could be captured, and forward passes are launched one kernel "
                f"after another: {reason}",
                stacklevel=3,
            )
            return _Recording(buffers, None, buffers[0])


@dataclass(frozen=True)
class _Recording:
    """Buffers for inputs of some shapes, and the graph that reads them and writes the output."""

    buffers: list[Tensor]
    graph: torch.cuda.CUDAGraph | None
    output: Tensor


def _warm_up(function: Callable[..., Tensor], buffers: list[Tensor]) -> None:
    """Call the function on a stream of its own, as a capture asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            function(*buffers)
    torch.cuda.current_stream().wait_stream(stream)


def _captured(
    function: Callable[..., Tensor], buffers: list[Tensor]
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Capture a call of the function; nothing is computed yet."""
    graph = torch.cuda.CUDAGraph()
    # What other threads ask of the GPU, such as pinned memory for the next batch, is no part of it.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = function(*buffers)
    return graph, output
