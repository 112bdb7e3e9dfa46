"""Where the policy of a fresh run starts: measured on the model, or taken from another run's plan.

Shapes: U units.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization import Initialization
from pgprune_lightning.initialization.features import (
    check_features,
    features_need_gradients,
    features_read_text,
    measure_features,
)
from pgprune_lightning.initialization.from_plan import load_start_plan, ranked_as
from pgprune_lightning.initialization.initial_policy import (
    probabilities_of,
    refined_importance,
)
from pgprune_lightning.initialization.measurement import Measurement
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.policy import FeasibleSet, MaskPolicy, UnitLayout, logits_of
from pgprune_lightning.training.masked_model import MaskedModel
from pgprune_lightning.training.measured_start import MeasuredStart


class PolicyInitializer:
    """The initialization of a run, checked against its units before the model is loaded.

    Args:
        initialization: How the first probabilities are found.
        space: The units.
        base_model: The model, as the user named it.
        feature_names: Further metrics that the policy asks for.
        shard: Ranks that share one copy of the weights.

    Raises:
        UserError: If a metric cannot measure a kind or a shared model, or a plan or scores are for
            other units.
    """

    def __init__(
        self,
        initialization: Initialization,
        space: UnitLayout,
        base_model: str,
        feature_names: Sequence[str] = (),
        shard: int = 1,
    ) -> None:
        initialization.check_units(space)
        check_features(feature_names, space)
        if shard > 1 and (initialization.needs_gradients or features_need_gradients(feature_names)):
            raise UserError(
                f"model.execution.shard: {shard} ranks that share a model cannot take the backward "
                "pass of the metrics taylor and fisher and of refine_steps. Choose another "
                "model.initialization.metric (and features), or give its "
                "model.initialization.scores, measured before."
            )
        self.feature_names = feature_names
        self.initialization = initialization
        plan = initialization.plan
        self.plan = None if plan is None else load_start_plan(plan, space, base_model)

    def check_text(self, trainer: Any) -> None:
        """Refuse too little calibration text, where some is read.

        Raises:
            UserError: If there is too little.
        """
        if self._reads_text:
            self.batches_of(trainer)()

    def start(
        self,
        policy: MaskPolicy,
        masked_model: MaskedModel,
        feasible_set: FeasibleSet,
        batches: Callable[[], Iterable[Tensor]],
        seed: int,
        kept: MeasuredStart | None = None,
    ) -> None:
        """Set a policy to where it starts, with the help of the loaded model.

        Args:
            policy: The policy, prepared.
            masked_model: The loaded model and its units.
            feasible_set: Budget and bounds.
            batches: Called to get the calibration batches.
            seed: For metrics that draw.
            kept: Where what is measured is kept as it grows; None: nowhere.

        Raises:
            UserError: If a plan is another model's, or a metric is not finite.
        """
        options = self.initialization
        measurement = Measurement()
        if kept is not None and self._reads_text:
            identity = self._identity(masked_model, batches, seed)
            measurement = kept.measurement(identity)
        model, space = masked_model.model, masked_model.space
        inputs = MetricInputs(model, space, batches, seed, measurement)
        if self.plan is None:
            metric_U = refined_importance(options, inputs, feasible_set)
            start_U = probabilities_of(options, metric_U, feasible_set)
        else:
            found = masked_model.fingerprint_like(self.plan.base_model.fingerprint)
            self.plan.check_base_model(found, masked_model.base_model.source)
            start_U = feasible_set.project(self.plan.keep_probabilities_U)
        if policy.feature_names:
            initial_U, slope = logits_of(start_U, feasible_set), 1.0
            if self.plan is not None:
                initial_U = ranked_as(self.plan.mask_U, initial_U, feasible_set)
            elif options.projection == "sigmoid_norm":
                initial_U, slope = metric_U, options.slope
            names, normalization = policy.feature_names, options.normalization
            features_FU = measure_features(names, initial_U, normalization, inputs)
            policy.take_features(features_FU, slope)
        policy.start_from(start_U, feasible_set)

    @property
    def _reads_text(self) -> bool:
        return self.initialization.reads_text or features_read_text(self.feature_names)

    def _identity(
        self,
        masked_model: MaskedModel,
        batches: Callable[[], Iterable[Tensor]],
        seed: int,
    ) -> dict[str, Any]:
        """What decides the numbers of the measurement beside the budget, as primitives."""
        text = hashlib.sha256()
        for batch_BT in batches():
            text.update(f"{tuple(batch_BT.shape)}".encode() + batch_BT.numpy().tobytes())
        model = masked_model.model
        return {
            "initialization": asdict(self.initialization),
            "features": list(self.feature_names),
            "seed": seed,
            "text": text.hexdigest(),
            "weights": masked_model.base_model.fingerprint,
            "computed in": [str(model.dtype), model.device.type, model.config._attn_implementation],
            "units": masked_model.space.to_dict(),
        }

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
