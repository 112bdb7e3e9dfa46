"""Which execution of masks a run uses: the one it names, or the faster of both on its first passes.

Shapes: U units.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.masking.gathered import GatheredExecution
from pgprune_lightning.masking.multiplied import MultipliedExecution
from pgprune_lightning.policy import MaskSpace

ExecutionName = Literal["gathered", "multiplied", "auto"]

WARM_UPS = 1
TIMED_PASSES = 3


class ExecutionChoice:
    """Both executions of a model and which of them is used.

    Args:
        model: The frozen model; its weights are laid out for gathering whatever is chosen, so that
            everything that reads them computes the same either way.
        space: The units of that model.
        name: The execution, or `auto`: the faster of both in `timed` passes, and the gathered one
            until that is known.
    """

    def __init__(self, model: PreTrainedModel, space: MaskSpace, name: ExecutionName) -> None:
        self.multiplied = MultipliedExecution(model, space)
        self._executions: dict[str, GatheredExecution | MultipliedExecution] = {
            "gathered": GatheredExecution(model, space),
            "multiplied": self.multiplied,
        }
        self._on_trial: str | None = None
        self._seconds: dict[str, list[float]] = {name: [] for name in self._executions}
        self._device = model.device
        self.picked: str | None = None if name == "auto" else name
        self._is_open = name == "auto"

    @property
    def current(self) -> GatheredExecution | MultipliedExecution:
        """The execution that a mask is to use now."""
        return self._executions[self._on_trial or self.picked or "gathered"]

    def restore(self, picked: str | None) -> None:
        """Use what an `auto` of the run that is resumed has picked; a named one stays."""
        if self._is_open and picked in self._executions:
            self.picked = picked

    @contextmanager
    def timed(self, mask_U: Tensor) -> Iterator[None]:
        """Give a forward pass to an execution in turn and time it, until one is picked.

        Args:
            mask_U: The mask of the pass, (U,), bool.
        """
        if self.picked is not None:
            yield
            return
        self._on_trial = min(self._seconds, key=lambda name: len(self._seconds[name]))
        start = self._now()
        try:
            yield
            self._seconds[self._on_trial].append(self._now() - start)
        finally:
            self._on_trial = None
        if all(len(seconds) == WARM_UPS + TIMED_PASSES for seconds in self._seconds.values()):
            self._pick(float(mask_U.double().mean()))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _pick(self, keep_ratio: float) -> None:
        medians = [statistics.median(seconds[WARM_UPS:]) for seconds in self._seconds.values()]
        seconds = dict(zip(self._seconds, self._mean_over_ranks(medians), strict=True))
        self.picked, other = sorted(seconds, key=lambda name: seconds[name])
        _announce(
            f"execution: {self.picked}, {seconds[self.picked]:.4f} s a forward pass against "
            f"{seconds[other]:.4f} s {other} (medians of {TIMED_PASSES}; the last mask kept "
            f"{keep_ratio:.0%} of the units)."
        )

    def _mean_over_ranks(self, seconds: list[float]) -> list[float]:
        """Ranks must pick the same, or a resumed run, which knows one pick, computes otherwise."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return seconds
        mean = torch.tensor(seconds, device=self._device)
        torch.distributed.all_reduce(mean)
        values: list[float] = (mean / torch.distributed.get_world_size()).tolist()
        return values


@rank_zero_only
def _announce(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
