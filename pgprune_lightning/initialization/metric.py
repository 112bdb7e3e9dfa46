"""What a metric of importance is, what it is given, and what it must return.

Shapes: U units, B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.mask_space import MaskSpace, UnitKind
from pgprune_lightning.progress import work_bar


@dataclass(frozen=True)
class MetricInputs:
    """What a metric may look at.

    Args:
        model: The dense, frozen model.
        space: Its prunable units.
        calibration_batches: Called to get batches of token ids, (B, T), int64.
        seed: For metrics that draw.
    """

    model: PreTrainedModel
    space: MaskSpace
    calibration_batches: Callable[[], Iterable[Tensor]]
    seed: int

    def batches(self) -> Iterator[Tensor]:
        """Yield the calibration batches, (B, T), int64, where the model is.

        Raises:
            UserError: If there is none.
        """
        num_sequences = 0
        bar = work_bar(self.calibration_batches(), desc="Measuring units", unit="batch")
        for batch_BT in bar:
            num_sequences += batch_BT.shape[0]
            yield batch_BT.to(self.model.device)
        if num_sequences == 0:
            raise UserError("initialization: the calibration data has no sequence to measure on.")


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
