"""Where the policy of a fresh run starts: measured on the model, or taken from another run's plan.

Shapes: U units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization import Initialization, initial_probabilities
from pgprune_lightning.initialization.from_plan import load_start_plan
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.policy import FeasibleSet, MaskSpace
from pgprune_lightning.training.environment import FrozenEnvironment


class StartingPoint:
    """The initialization of a run, checked against its units before the model is loaded.

    Args:
        initialization: How the first probabilities are found.
        space: The units.
        base_model: The model, as the user named it.

    Raises:
        UserError: If the metric cannot measure a kind, or a plan or scores are for other units.
    """

    def __init__(self, initialization: Initialization, space: MaskSpace, base_model: str) -> None:
        initialization.check_units(space)
        self.initialization = initialization
        plan = initialization.plan
        self.plan = None if plan is None else load_start_plan(plan, space, base_model)

    def check_text(self, trainer: Any) -> None:
        """Refuse too little calibration text, where some is read.

        Raises:
            UserError: If there is too little.
        """
        if self.initialization.reads_text:
            self.batches_of(trainer)()

    def probabilities(
        self,
        environment: FrozenEnvironment,
        feasible_set: FeasibleSet,
        batches: Callable[[], Iterable[Tensor]],
        seed: int,
    ) -> Tensor:
        """Find the first keep-probabilities with the help of the loaded model.

        Args:
            environment: The loaded model and its units.
            feasible_set: Budget and bounds.
            batches: Called to get the calibration batches.
            seed: For metrics that draw.

        Returns:
            Keep-probabilities, (U,), float64, CPU.

        Raises:
            UserError: If a plan is another model's, or the metric is not finite.
        """
        if self.plan is not None:
            base_model = environment.base_model
            self.plan.check_base_model(base_model.fingerprint, base_model.source)
            return feasible_set.project(self.plan.keep_probabilities_U)
        inputs = MetricInputs(environment.model, environment.space, batches, seed)
        return initial_probabilities(self.initialization, inputs, feasible_set)

    def batches_of(self, trainer: Any) -> Callable[[], Iterable[Tensor]]:
        """What reads the calibration batches of a Trainer's data module."""

        def batches() -> Iterable[Tensor]:
            datamodule: Any = getattr(trainer, "datamodule", None)
            if datamodule is None:
                raise UserError(
                    "The initial metric needs calibration data: give the Trainer a datamodule."
                )
            read: Iterable[Tensor] = datamodule.calibration_batches(
                self.initialization.num_blocks, datamodule.batch_size
            )
            return read

        return batches
