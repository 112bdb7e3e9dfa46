"""A graphed function gives what the function gives, whatever its buffers held before."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pgprune_lightning.masking import cuda_graph
from pgprune_lightning.masking.cuda_graph import CudaGraphFunction


class Doubled:
    """Twice the first input plus the second; counts how often it is called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        self.calls += 1
        return 2 * first + second


class StandInGraph:
    """Does at a replay what a graph does: reads the buffers anew, and writes the same output."""

    def __init__(self, function: Callable[..., Tensor], buffers: list[Tensor]) -> None:
        self.function, self.buffers = function, buffers
        self.output = torch.full_like(function(*buffers), float("nan"))

    def replay(self) -> None:
        self.output.copy_(self.function(*self.buffers))


def capture_by_stand_in(monkeypatch: pytest.MonkeyPatch) -> list[StandInGraph]:
    graphs: list[StandInGraph] = []

    def captured(function: Callable[..., Tensor], buffers: list[Tensor]) -> Any:
        graphs.append(StandInGraph(function, buffers))
        return graphs[-1], graphs[-1].output

    monkeypatch.setattr(cuda_graph, "_warm_up", lambda *_: None)
    monkeypatch.setattr(cuda_graph, "_captured", captured)
    return graphs


@pytest.mark.parametrize("capture", [False, True])
def test_every_call_reads_its_own_inputs(monkeypatch: pytest.MonkeyPatch, capture: bool) -> None:
    """One graph a shape, and a value stays what it is when another call follows."""
    graphs = capture_by_stand_in(monkeypatch)
    function, called = Doubled(), []
    both = CudaGraphFunction(function, capture=capture)
    for number, rows in enumerate([2, 2, 3, 2, 3]):
        first = torch.full((1, 4), float(number)).expand(rows, 4)
        second = torch.arange(rows)[:, None] + torch.zeros(rows, 4)
        called.append((both(first, second), 2 * first + second))
    for value, expected in called:
        assert torch.equal(value, expected)
    assert len(graphs) == (2 if capture else 0)


def test_what_is_forgotten_is_captured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = capture_by_stand_in(monkeypatch)
    both = CudaGraphFunction(Doubled(), capture=True)
    one = torch.ones(1)
    for _ in range(2):
        assert float(both(one, one)) == 3
    both.forget()
    assert float(both(one, one)) == 3
    assert len(graphs) == 2


def test_a_failed_capture_is_told_once_and_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def captured(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nat some line")

    monkeypatch.setattr(cuda_graph, "_warm_up", lambda *_: None)
    monkeypatch.setattr(cuda_graph, "_captured", captured)
    both = CudaGraphFunction(Doubled(), capture=True)
    with pytest.warns(UserWarning, match="not permitted when stream is capturing$"):
        assert float(both(torch.ones(1), torch.ones(1))) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (1, 2):
            assert torch.equal(both(torch.ones(rows), torch.ones(rows)), torch.full((rows,), 3.0))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), ValueError("wrong")])
def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def captured(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(cuda_graph, "_warm_up", lambda *_: None)
    monkeypatch.setattr(cuda_graph, "_captured", captured)
    with pytest.raises(type(error)):
        CudaGraphFunction(Doubled(), capture=True)(torch.ones(1), torch.ones(1))


@pytest.mark.gpu
def test_on_a_gpu_the_function_is_called_for_the_capture_alone() -> None:
    function = Doubled()
    both = CudaGraphFunction(function, capture=True)
    for number in range(4):
        value = torch.full((2,), float(number), device="cuda")
        assert both(value, value).tolist() == [3.0 * number] * 2
    assert function.calls == cuda_graph._WARM_UPS + 1
