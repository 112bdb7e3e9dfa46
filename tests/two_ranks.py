"""Two processes on the CPU, joined by gloo, as `torchrun` would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any


def run_two_ranks(of_a_rank: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a module's top level as `of_a_rank(rank, *arguments)` in two processes.

    Raises:
        Exception: What one of them raised; the other is ended.
    """
    import torch

    torch.multiprocessing.spawn(_rank, args=(of_a_rank, _free_port(), arguments), nprocs=2)


def statuses_of_two_ranks(of_a_rank: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Call a function as `run_two_ranks` does; return how each process ended, by itself."""
    context = multiprocessing.get_context("spawn")
    port = _free_port()
    ranks = [
        context.Process(target=_rank, args=(rank, of_a_rank, port, arguments)) for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return [process.exitcode for process in ranks]


def on_two_ranks() -> dict[str, Any]:
    """What a Trainer of such a process is given."""
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment

    return {"devices": 2, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _rank(rank: int, of_a_rank: Callable[..., None], port: int, arguments: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", GROUP_RANK="0")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    of_a_rank(rank, *arguments)
