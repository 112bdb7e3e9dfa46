"""Few numbers for each layer and kind instead of one for each unit.

Shapes: U units, G groups (the units of one kind in one layer), F metrics, K = 1 + F, N free units.
"""

# No `from __future__ import annotations`: the command line reads these types.
import torch
from torch import Tensor, nn

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.fisher import natural_logit_gradient, natural_pooled_gradient
from pgprune_lightning.policy.mask_space import MaskSpace, UnitKind
from pgprune_lightning.policy.policies.logit_policy import LogitPolicy


class StructuredLogits(LogitPolicy):
    """The logit of a unit is an offset and a slope on each metric, of its layer and kind.

    A layer's share and how far its metric can be trusted are learned from sums over many units,
    and so within few passes; logits of single units can follow in the same run. It starts at
    `initialization.slope` times the initial metric. As in `FreeLogits`, the logits are shifted onto
    the budget.

    Args:
        features: Metrics beside the initial one that get slopes of their own, such as
            [flap, fisher], normalised as `initialization.normalization` says; they start at 0.
        free_kinds: Kinds of unit that have one free logit each from the start instead, such as
            [kv_group].
        free_after: Number of steps after which every other unit gets a free logit too, added to
            what its layer's numbers say; null: never.
        free_factor: Factor on `lr` for those added logits.
        final_sharpness: What the logits are multiplied by at the end of the run, growing from 1
            geometrically, so that the policy gets surer of its mask; 1 switches it off.

    Raises:
        UserError: A number is out of its range.

    Differs: not in the paper.
    """

    features_FU: Tensor
    """Normalised metrics, the initial one first; in the state, since a resumed run has no text."""
    group_of_U: Tensor
    free_units_N: Tensor
    pooled_units_N: Tensor
    lr_factors_G: Tensor

    def __init__(
        self,
        features: list[str] = [],  # noqa: B006 (read only)
        free_kinds: list[UnitKind] = [],  # noqa: B006 (read only)
        free_after: int | None = None,
        free_factor: float = 1.0,
        final_sharpness: float = 1.0,
    ) -> None:
        super().__init__(final_sharpness)
        if free_after is not None and free_after < 0:
            raise UserError(
                f"model.policy: free_after must be 0 or more steps, given {free_after}."
            )
        if not free_factor > 0:
            raise UserError(f"model.policy: free_factor must be above 0, given {free_factor}.")
        self.feature_names = ("initial", *features)
        self.free_kinds = free_kinds
        self.free_after = free_after
        self.free_factor = free_factor

    def prepare(self, space: MaskSpace, lr_factors: dict[UnitKind, float]) -> None:
        """Make parameters and buffers. See `MaskPolicy.prepare`."""
        super().prepare(space, lr_factors)
        missing = [kind for kind in self.free_kinds if kind not in space.kinds]
        if missing:
            raise UserError(
                f"model.policy: free_kinds: {missing[0]} is not among unit_kinds "
                f"[{', '.join(space.kinds)}]."
            )
        group_of_U = torch.repeat_interleave(
            torch.arange(len(space.groups)), torch.tensor([g.count for g in space.groups])
        )
        free_U = torch.zeros(space.num_units, dtype=torch.bool)
        for kind in self.free_kinds:
            free_U[space.units_of(kind)] = True
        factors_G = self.lr_factors_U[torch.tensor([group.start for group in space.groups])]
        features_FU = torch.zeros(len(self.feature_names), space.num_units, dtype=torch.float64)
        self.register_buffer("features_FU", features_FU)
        for name, values in {
            "group_of_U": group_of_U,
            "free_units_N": free_U.nonzero()[:, 0],
            "pooled_units_N": (~free_U).nonzero()[:, 0],
            "lr_factors_G": factors_G,
        }.items():
            self.register_buffer(name, values, persistent=False)
        self._make_parameters(len(space.groups))

    def _make_parameters(self, num_groups: int) -> None:
        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape, dtype=torch.float64))

        # The offset first, then the slopes: (G, K).
        self.offsets_and_slopes = zeros(num_groups, 1 + len(self.feature_names))
        self.free_logits = zeros(len(self.free_units_N)) if self.free_kinds else None
        self.added_logits = None if self.free_after is None else zeros(len(self.pooled_units_N))

    @torch.no_grad()
    def take_features(self, features_FU: Tensor, slope: float) -> None:
        """Keep the metrics, and start at the first. See `MaskPolicy.take_features`."""
        self.features_FU.copy_(features_FU)
        self.offsets_and_slopes.zero_()
        self.offsets_and_slopes[:, 1] = slope

    def unit_logits(self) -> Tensor:
        """From the layers' numbers, and the units' own. See `LogitPolicy.unit_logits`."""
        numbers_UK = self.offsets_and_slopes.detach()[self.group_of_U]
        logits_U = (numbers_UK * self._multipliers()).sum(dim=1)
        if self.free_logits is not None:
            logits_U[self.free_units_N] = self.free_logits.detach()
        if self.added_logits is not None:
            logits_U[self.pooled_units_N] += self.added_logits.detach()
        return logits_U

    def step_factors(self) -> list[Tensor]:
        """Those of the kinds, and that of the added logits. See `MaskPolicy.step_factors`."""
        factors = [self.lr_factors_G[:, None]]
        if self.free_logits is not None:
            factors.append(self.lr_factors_U[self.free_units_N])
        if self.added_logits is not None:
            factors.append(self.free_factor * self.lr_factors_U[self.pooled_units_N])
        return factors

    def natural_gradients(self, damping: float) -> list[Tensor | None]:
        """Solve with the Fisher information, that of each kind of parameter by itself.

        See `MaskPolicy.natural_gradients`.
        """
        feasible_set, s_U = self._last_budget(), self.keep_probabilities
        v_U, gradient_GK = self._derivatives(feasible_set), self.offsets_and_slopes.grad
        assert gradient_GK is not None
        natural: list[Tensor | None] = [
            natural_pooled_gradient(
                gradient_GK,
                self._multipliers(),
                self.group_of_U,
                s_U,
                v_U,
                feasible_set,
                damping=damping,
            )
        ]
        single_U = natural_logit_gradient(
            self._logit_gradient_U, s_U, v_U, feasible_set, damping=damping
        )
        if self.free_logits is not None:
            natural.append(single_U[self.free_units_N])
        if self.added_logits is not None:
            joined = self.added_logits.grad is not None
            natural.append(single_U[self.pooled_units_N] if joined else None)
        return natural

    def _multipliers(self) -> Tensor:
        """What each unit multiplies its group's numbers by, (U, K): 1 and its metrics, or zeros."""
        ones_U1 = torch.ones_like(self.features_FU[0])[:, None]
        multipliers_UK = torch.cat([ones_U1, self.features_FU.T], dim=1)
        return multipliers_UK.index_fill_(0, self.free_units_N, 0)

    def _start_at(self, logits_U: Tensor) -> None:
        # The metrics say where to start, and not the probabilities: those hold the budget's shift,
        # which single logits, that compete with pooled ones, must not have in them.
        if self.free_logits is not None:
            slopes_U = self.offsets_and_slopes[self.group_of_U, 1]
            self.free_logits.copy_((slopes_U * self.features_FU[0])[self.free_units_N])

    def _assign_logit_gradient(self, gradient_U: Tensor, step: int) -> None:
        self._logit_gradient_U = gradient_U
        gradient_GK = torch.zeros_like(self.offsets_and_slopes)
        gradient_GK.index_add_(0, self.group_of_U, gradient_U[:, None] * self._multipliers())
        self.offsets_and_slopes.grad = gradient_GK
        if self.free_logits is not None:
            self.free_logits.grad = gradient_U[self.free_units_N]
        if self.added_logits is not None:
            joined = self.free_after is not None and step >= self.free_after
            self.added_logits.grad = gradient_U[self.pooled_units_N] if joined else None
