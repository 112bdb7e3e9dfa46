"""Which execution of masks a run uses: the one it names, or the fastest in its first steps.

Shapes: S mask samples, U units.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.masking.batched import BatchedExecution
from pgprune_lightning.masking.compact import CompactExecution
from pgprune_lightning.masking.dense_masked import DenseMaskedExecution
from pgprune_lightning.policy import UnitLayout

ExecutionName = Literal["compact", "dense_masked", "batched", "auto"]

CANDIDATES = ("compact", "dense_masked", "batched")
ONE_A_SEQUENCE = ("compact", "batched")
"""Those of masks that read one sequence each: under `compact` they are multiplied in one pass, and
only masks that read more are gathered."""
WARM_UPS = 1
TIMED_STEPS = 2


class ExecutionChoice:
    """The executions of a model and which of them is used.

    Args:
        model: The frozen model; its weights are laid out for gathering whatever is chosen, so that
            everything that reads them computes the same either way.
        space: The units of that model.
        name: The execution, or `auto`: the fastest in `timed` steps, and the compact one until
            that is known.
    """

    def __init__(self, model: PreTrainedModel, space: UnitLayout, name: ExecutionName) -> None:
        self.dense_masked = DenseMaskedExecution(model, space)
        self._compact = CompactExecution(model, space)
        self._on_trial: str | None = None
        self._seconds: dict[str, list[float]] = {name: [] for name in CANDIDATES}
        self._device = model.device
        self.picked: str | None = None if name == "auto" else name
        self._is_open = name == "auto"

    @property
    def name(self) -> str:
        """The execution that masks are to use now."""
        return self._on_trial or self.picked or "compact"

    @property
    def current(self) -> CompactExecution | DenseMaskedExecution:
        """What puts a single mask on the model now; `batched` multiplies."""
        return self._compact if self.name == "compact" else self.dense_masked

    @cached_property
    def batched(self) -> BatchedExecution:
        """What `batched` reads losses by."""
        return BatchedExecution(self.dense_masked.model, self.dense_masked.space)

    def restore(self, picked: str | None) -> None:
        """Use what an `auto` of the run that is resumed has picked; a named one stays."""
        if self._is_open and picked in CANDIDATES:
            self.picked = picked

    @contextmanager
    def timed(self, masks_SU: Tensor, candidates: tuple[str, ...] = CANDIDATES) -> Iterator[None]:
        """Give the losses of a step to an execution in turn and time it, until one is picked.

        Args:
            masks_SU: The masks of the step, (S, U), bool.
            candidates: What is tried.
        """
        if self.picked is not None:
            yield
            return
        self._on_trial = min(candidates, key=lambda name: len(self._seconds[name]))
        start = self._now()
        try:
            yield
            self._seconds[self._on_trial].append(self._now() - start)
        finally:
            self._on_trial = None
        if all(len(self._seconds[name]) == WARM_UPS + TIMED_STEPS for name in candidates):
            self._pick(candidates, float(masks_SU.double().mean()))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _pick(self, candidates: tuple[str, ...], keep_ratio: float) -> None:
        # Whatever else the machine does only adds to the time.
        least = [min(self._seconds[name][WARM_UPS:]) for name in candidates]
        seconds = dict(zip(candidates, self._mean_over_ranks(least), strict=True))
        self.picked, *others = sorted(seconds, key=lambda name: seconds[name])
        if self.picked != "batched":
            self.batched.forget()
        slower = " and ".join(f"{seconds[other]:.4f} s {other}" for other in others)
        _announce(
            f"execution: {self.picked}, {seconds[self.picked]:.4f} s for the losses of a step "
            f"against {slower} (the faster of {TIMED_STEPS}; the last masks kept {keep_ratio:.0%} "
            "of the units)."
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
