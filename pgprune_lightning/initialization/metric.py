"""What a metric of importance is, what it is given, and what it must return.

Shapes: U units, B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.measurement import Measurement
from pgprune_lightning.policy.unit_layout import UnitKind, UnitLayout


@dataclass(frozen=True)
class MetricInputs:
    """What a metric may look at.

    Args:
        model: The dense, frozen model.
        space: Its prunable units.
        calibration_batches: Called to get batches of token ids, (B, T), int64.
        seed: For metrics that draw.
        measurement: Shows how far it is, and keeps what it has found.
    """

    model: PreTrainedModel
    space: UnitLayout
    calibration_batches: Callable[[], Iterable[Tensor]]
    seed: int
    measurement: Measurement = field(default_factory=Measurement)

    def batches(self) -> list[Tensor]:
        """The calibration batches, (B, T), int64, where the model is.

        Raises:
            UserError: If there is none.
        """
        batches = [batch_BT.to(self.model.device) for batch_BT in self.calibration_batches()]
        if not batches:
            raise UserError("initialization: the calibration data has no sequence to measure on.")
        return batches

    @property
    def num_sequences(self) -> int:
        """Calibration sequences of all batches."""
        return sum(len(batch_BT) for batch_BT in self.calibration_batches())

    def measured_batches(self, metric: str, sums: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield the calibration batches that are not in the sums yet; see `Measurement.parts`.

        Args:
            metric: What is measured; its name is that of the phase.
            sums: What the caller adds to, in place.

        Yields:
            Token ids, (B, T), int64, where the model is.

        Raises:
            UserError: If there is none.
        """
        batches = self.batches()
        parts = self.measurement.parts(f"Measuring {metric}", len(batches), sums, unit="batch")
        for part in parts:
            yield batches[part]


@dataclass(frozen=True)
class Metric:
    """A metric of importance, and what it can be asked.

    Args:
        measure: Returns the importance of every unit, (U,), float64 on the CPU; larger is more
            important.
        unit_kinds: The kinds of unit that it can measure.
        reads_text: Whether it is measured on calibration text.
        draws: Whether it depends on the seed, on equal text too.
        needs_gradients: Whether it takes a backward pass, which no model that ranks share can take.
    """

    measure: Callable[[MetricInputs], Tensor]
    unit_kinds: tuple[UnitKind, ...]
    reads_text: bool = True
    draws: bool = False
    needs_gradients: bool = False

    def __call__(self, inputs: MetricInputs) -> Tensor:
        """Measure the importance of every unit, (U,), float64, CPU."""
        return self.measure(inputs)
