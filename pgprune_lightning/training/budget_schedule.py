"""The budget of every step: fixed, or falling to its target by stages."""

# No `from __future__ import annotations`: the command line reads these types.
import math
from dataclasses import dataclass
from typing import Any

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import FeasibleSet, UnitLayout


@dataclass(frozen=True)
class Progressive:
    """A keep ratio that falls from near 1 to its target by steps, so that no metric is needed.

    Args:
        start: Keep ratio of the first stage, above `model.keep_ratio` and at most 1.
        step: How much the keep ratio falls from stage to stage; the last one ends at the target.
        steps_per_stage: Training steps of every stage but the last, which has what is left of
            `trainer.max_steps`; the paper's is a third of an epoch.

    Source: A.12, Random-Progressive.
    """

    start: float = 0.95
    step: float = 0.05
    steps_per_stage: int = 5000

    # Not __post_init__: the command line buries what the class of an optional value raises.
    def check(self, target: float) -> None:
        """Refuse values that make no stages down to a target.

        Raises:
            UserError: A value is out of range, or the start is not above the target.
        """
        if not 0 < self.start <= 1:
            raise UserError(f"progressive.start: must lie in (0, 1], given {self.start}.")
        if not 0 < self.step < 1:
            raise UserError(f"progressive.step: must lie between 0 and 1, given {self.step}.")
        if self.steps_per_stage < 1:
            raise UserError(
                f"progressive.steps_per_stage: must be at least 1, given {self.steps_per_stage}."
            )
        if not self.start > target:
            raise UserError(
                f"progressive.start: {self.start} is not above the keep ratio {target} that it "
                "should fall to."
            )

    def ratios(self, target: float) -> list[float]:
        """The keep ratio of each stage, falling; the last is the target itself."""
        # Rounding is forgiven: 0.95 - 5 * 0.05 is a little above 0.7, and no stage of its own.
        num_before = math.ceil((self.start - target) / self.step - 1e-9)
        before = [round(self.start - stage * self.step, 12) for stage in range(num_before)]
        return [*before, target]


@dataclass(frozen=True)
class Stage:
    """A keep ratio and the probabilities that are feasible under it."""

    keep_ratio: float
    feasible_set: FeasibleSet


class BudgetSchedule:
    """The feasible set of every step, as a pure function of the number of steps taken.

    Args:
        space: The units.
        keep_ratio: The target, which the finished run keeps.
        progressive: Keep-ratio schedule; None means constant.
        options: Further arguments of `FeasibleSet`.

    Raises:
        UserError: The stages make no sense, or the budget of one is impossible.
    """

    def __init__(
        self, space: UnitLayout, keep_ratio: float, progressive: Progressive | None, **options: Any
    ) -> None:
        if progressive is not None:
            progressive.check(keep_ratio)
        ratios = [keep_ratio] if progressive is None else progressive.ratios(keep_ratio)
        self.steps_per_stage = 1 if progressive is None else progressive.steps_per_stage
        # All stages now: an impossible one is refused before any training.
        self.stages = [Stage(ratio, FeasibleSet(space, ratio, **options)) for ratio in ratios]

    def at(self, step: int) -> Stage:
        """The stage whose budget holds after a number of steps."""
        return self.stages[min(step // self.steps_per_stage, len(self.stages) - 1)]

    def measured_at(self, step: int) -> Stage:
        """The stage whose budget the masks measured after a number of steps have.

        It is the current stage, except for the untrained policy, which is measured at the last one:
        the masks before and after a run must be comparable.
        """
        return self.at(step) if step > 0 else self.stages[-1]

    def check_length(self, max_steps: int) -> None:
        """Refuse a run that ends before it trains at the target; -1 has no end.

        Raises:
            UserError: `max_steps` is too small.
        """
        before_target = (len(self.stages) - 1) * self.steps_per_stage
        if before_target and 0 <= max_steps <= before_target:
            raise UserError(
                f"progressive: the target is reached after {before_target} steps, but "
                f"trainer.max_steps is {max_steps}; give more, or fewer steps_per_stage."
            )
