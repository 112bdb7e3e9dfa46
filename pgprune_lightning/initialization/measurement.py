"""A measurement in parts: shown by a bar with a total, and kept as it grows, so that it can go on.

At the size of real models the measurement of a metric takes minutes to hours, and nothing else of a
run is there yet. All that it has found between two of its parts lies in a few tensors, its sums.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.progress import work_bar

SECONDS_BETWEEN_SAVES = 20.0
"""A measurement that is killed repeats the part that it was in, and at most so many seconds."""

MeasurementState = dict[str, Any]
"""By name of a phase: `done`, the number of its parts that are in its sums, and the `sums`."""


class Measurement:
    """Goes through the phases of a measurement part by part.

    Args:
        state: What an earlier process had found of the same measurement.
        save: Is given the state now and then, between two parts; None: nothing is kept.
    """

    def __init__(
        self,
        state: MeasurementState | None = None,
        save: Callable[[MeasurementState], None] | None = None,
    ) -> None:
        self._found = dict(state or {})
        self._phases = dict(self._found)
        self._save = save
        self._saved_at = time.monotonic()
        self._save_fails = False

    def parts(
        self, name: str, total: int, sums: Mapping[str, Tensor], *, unit: str
    ) -> Iterator[int]:
        """Yield the numbers of the parts that are not in the sums yet.

        Args:
            name: Of the phase, as the bar shows it; phases of one name measure the same.
            total: How many parts it has.
            sums: What the caller adds to in place, and nothing else that a part leaves. They are
                set to what an earlier process had found.
            unit: What a part is, for the bar.
        """
        done = self._restore(name, total, sums)
        bar = work_bar(range(done, total), initial=done, total=total, desc=name, unit=unit, delay=0)
        for part in bar:
            yield part
            self._phases[name] = {"done": part + 1, "sums": sums}
            self._save_when_due()
        self._phases[name] = {"done": total, "sums": _copied(sums)}

    def _restore(self, name: str, total: int, sums: Mapping[str, Tensor]) -> int:
        """Set sums to what was found, and return the number of parts in them."""
        phase = self._found.pop(name, None)
        if phase is None:
            return 0
        for key, tensor in sums.items():
            tensor.copy_(phase["sums"][key])
        done: int = phase["done"]
        return done

    def _save_when_due(self) -> None:
        if self._save is None or time.monotonic() - self._saved_at < SECONDS_BETWEEN_SAVES:
            return
        try:
            self._save(
                {
                    name: {"done": phase["done"], "sums": _copied(phase["sums"])}
                    for name, phase in self._phases.items()
                }
            )
        except UserError as error:
            if not self._save_fails:
                warnings.warn(f"the measurement goes on, unsaved: {error}", stacklevel=2)
            self._save_fails = True
        self._saved_at = time.monotonic()


def _copied(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in sums.items()}
