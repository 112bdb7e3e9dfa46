"""Logits to keep-probabilities whose expected kept cost is the budget, and gradients back.

In each budget `s_u = lower + (upper - lower) * sigmoid(x_u + b)`, with the one shift b for which
`sum(c * s)` equals the limit. The map is smooth: a unit near a bound moves slowly, but it moves,
as it would not under a clamp.

Let v be the derivative of s with respect to its own logit at a fixed shift, c the costs and
C = sum(c v). The Jacobian of a budget's probabilities is `J = V (1 - e (c v)^T / C)`, e all ones.
The Fisher information of a probability is 1 / (s (1 - s)), so that of the logits is, with
`omega = v^2 / (s (1 - s))` and `q = c v`, diagonal except for two directions:
`J^T diag(1 / (s (1 - s))) J = diag(omega) - (omega q^T + q omega^T) / C + sum(omega) q q^T / C^2`.

Shapes: U units of the whole model, N free units of one constraint, G groups whose units share K
parameters, P = G K.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.feasible_set import FeasibleSet

_TOLERANCE = 1e-14  # of the kept cost, relative to the whole cost
_MOST_ROUNDS = 200  # enough even for bisection alone
_FAR = 800.0  # where a sigmoid is exactly 0 or 1
_MARGIN = 1e-3  # start of a unit at a bound, as a share of the distance between the bounds


def check_no_layer_bounds(feasible_set: FeasibleSet) -> None:
    """Refuse layer bounds, which one shift a budget cannot meet, with a UserError."""
    if any(constraint.groups for constraint in feasible_set.constraints):
        raise UserError(
            "model.policy: a policy of logits cannot hold layer_keep_ratios. Leave them at [0, 1], "
            "or use the policy FreeProbabilities; protected_layers hold with either."
        )


def probabilities_on_budget(logits_U: Tensor, feasible_set: FeasibleSet) -> Tensor:
    """Shift the logits of each budget onto it, and map them into the bounds.

    Args:
        logits_U: Logits x, (U,) float64.
        feasible_set: Budgets and bounds.

    Returns:
        Keep-probabilities, (U,) float64. The kept cost of each budget is its limit to within 1e-12
        of the whole cost; protected units have exactly 1.

    Raises:
        UserError: A logit is not finite.
    """
    _check_finite(logits_U)
    s_U = torch.ones_like(logits_U)
    for constraint in feasible_set.constraints_on(logits_U.device):
        span, total = constraint.upper - constraint.lower, constraint.total_cost
        share = (constraint.limit / total - constraint.lower) / span
        x_N = logits_U[constraint.units]
        sigmoid_N = (x_N + _shift(x_N, constraint.costs / total, share)).sigmoid()
        s_U[constraint.units] = constraint.lower + span * sigmoid_N
    return s_U


def shift_logits(logits_U: Tensor, feasible_set: FeasibleSet) -> Tensor:
    """Shift the logits of each budget's free units so that their sigmoids meet its limit.

    Args:
        logits_U: Logits x, (U,).
        feasible_set: Budgets; bounds are ignored, since an initial policy is projected afterwards.

    Returns:
        `x + b` with one constant `b` a budget, (U,) float64. The kept cost is the limit to within
        1e-12 of the whole cost; logits of protected units are unchanged.

    Raises:
        UserError: A logit is not finite.
    """
    _check_finite(logits_U)
    shifted_U = logits_U.detach().double().clone()
    for constraint in feasible_set.constraints_on(logits_U.device):
        x_N, total = shifted_U[constraint.units], constraint.total_cost
        shift = _shift(x_N, constraint.costs / total, constraint.limit / total)
        shifted_U[constraint.units] = x_N + shift
    return shifted_U


def _check_finite(logits_U: Tensor) -> None:
    if not bool(logits_U.isfinite().all()):
        raise UserError(
            f"{int((~logits_U.isfinite()).sum())} of {len(logits_U)} logits are not finite. "
            "Lower the step size, or look for a loss or a metric that is not finite."
        )


def _shift(x_N: Tensor, weights_N: Tensor, mean: float) -> Tensor:
    """Find the b for a given weighted mean of sigmoid(x + b), by Newton within a bracket."""
    if mean <= _TOLERANCE:
        return -_FAR - x_N.max()
    if mean >= 1 - _TOLERANCE:
        return _FAR - x_N.min()
    # At its ends every sigmoid is on one side of the mean.
    level = math.log(mean) - math.log1p(-mean)
    low, high = level - x_N.max(), level - x_N.min()
    shift = (low + high) / 2
    for _ in range(_MOST_ROUNDS):
        sigmoid_N = (x_N + shift).sigmoid()
        excess, slope = weights_N @ sigmoid_N - mean, weights_N @ (sigmoid_N * (1 - sigmoid_N))
        if abs(float(excess)) <= _TOLERANCE:
            break
        low, high = (low, shift) if excess > 0 else (shift, high)
        newton = shift - excess / slope  # not finite where no unit moves any more
        shift = newton if low < newton < high else (low + high) / 2
        if not low < shift < high:
            break
    return shift


def logits_of(probabilities_U: Tensor, feasible_set: FeasibleSet) -> Tensor:
    """Invert `probabilities_on_budget` at feasible probabilities, (U,).

    Returns:
        Logits, (U,) float64, finite; 0 for protected units. A unit exactly at a bound, whose logit
        would be infinite, starts a thousandth of the distance away from it, or at the outermost
        logit of its budget if that is further: the order stays, and derivatives do not vanish.
    """
    logits_U = torch.zeros_like(probabilities_U, dtype=torch.float64)
    most = float(torch.logit(torch.tensor(1 - _MARGIN, dtype=torch.float64)))
    for constraint in feasible_set.constraints_on(probabilities_U.device):
        units = constraint.units
        s_N = probabilities_U[units].double()
        x_N = torch.logit((s_N - constraint.lower) / (constraint.upper - constraint.lower), eps=0.0)
        finite = x_N[x_N.isfinite()]
        limits = torch.cat([finite, finite.new_tensor([-most, most])])
        logits_U[units] = x_N.clamp(limits.min(), limits.max())
    return logits_U


def derivatives(s_U: Tensor, feasible_set: FeasibleSet) -> Tensor:
    """Derivative v of each probability with respect to its own logit at a fixed shift.

    Returns:
        `(s - lower) (upper - s) / (upper - lower)`, (U,) float64; 0 for protected units.
    """
    v_U = torch.zeros_like(s_U)
    for constraint in feasible_set.constraints_on(s_U.device):
        units = constraint.units
        s_N, span = s_U[units], constraint.upper - constraint.lower
        v_U[units] = (s_N - constraint.lower) * (constraint.upper - s_N) / span
    return v_U


def pull_back(gradient_U: Tensor, v_U: Tensor, feasible_set: FeasibleSet) -> Tensor:
    """Turn a gradient with respect to the probabilities into one with respect to the logits.

    The kept cost is constant, so the shift depends on every logit: `db/dx_u = -c_u v_u / sum(c v)`.

    Args:
        gradient_U: d E[loss] / d s, (U,) float64, in nats per token.
        v_U: The `derivatives`, (U,).
        feasible_set: The budgets.

    Returns:
        `v (g - c sum(v g) / sum(v c))` in each budget, (U,) float64; 0 for protected units.
    """
    pulled_U = torch.zeros_like(gradient_U)
    for constraint in feasible_set.constraints_on(gradient_U.device):
        units = constraint.units
        costs_N = constraint.costs
        g_N, v_N = gradient_U[units], v_U[units]
        # Where every unit lies on a bound all derivatives are 0, and so is the result.
        weight = (v_N @ costs_N).clamp(min=torch.finfo(v_N.dtype).tiny)
        pulled_U[units] = v_N * (g_N - costs_N * (v_N @ g_N) / weight)
    return pulled_U


def natural_logit_gradient(
    gradient_U: Tensor, s_U: Tensor, v_U: Tensor, feasible_set: FeasibleSet, *, damping: float
) -> Tensor:
    """Solve (Fisher information + damping) x = gradient for one free logit a unit.

    Args:
        gradient_U: Gradient of the logits, (U,) float64.
        s_U: Keep-probabilities, (U,).
        v_U: The `derivatives`, (U,), times the sharpness of the logits.
        feasible_set: The budgets.
        damping: Added to the information of every unit, positive.

    Returns:
        x, (U,) float64; 0 for protected units.

    Source: Amari (1998), natural gradient.
    """
    solved_U = torch.zeros_like(gradient_U)
    omega_U = unit_information(s_U, v_U)
    for constraint in feasible_set.constraints_on(gradient_U.device):
        units = constraint.units
        omega_N, q_N = omega_U[units], v_U[units] * constraint.costs
        diagonal_N = omega_N + damping
        x_N = gradient_U[units] / diagonal_N
        if float(q_N.sum()) > 0:
            # Woodbury's identity for the two directions; `core` is the inverse of the matrix
            # [[0, -1/C], [-1/C, sum(omega)/C^2]] between them, which has a closed form.
            directions_N2 = torch.stack([omega_N, q_N], dim=1)
            omega_sum, q_sum = omega_N.sum(), q_N.sum()
            core = torch.stack([-omega_sum, -q_sum, -q_sum, torch.zeros_like(q_sum)]).view(2, 2)
            core = core + directions_N2.T @ (directions_N2 / diagonal_N[:, None])
            x_N -= (directions_N2 @ torch.linalg.solve(core, directions_N2.T @ x_N)) / diagonal_N
        solved_U[units] = x_N
    return solved_U


def unit_information(s_U: Tensor, v_U: Tensor) -> Tensor:
    """Fisher information of each unit's logit at a fixed shift, v^2 / (s (1 - s)), (U,)."""
    variance_U = s_U * (1 - s_U)
    return torch.where(variance_U > 0, v_U.square() / variance_U, 0.0)


def natural_pooled_gradient(
    gradient_GK: Tensor,
    features_UK: Tensor,
    group_of_U: Tensor,
    s_U: Tensor,
    v_U: Tensor,
    feasible_set: FeasibleSet,
    *,
    damping: float,
) -> Tensor:
    """Solve the same for parameters that units of a group share: logit = features @ parameters.

    With A the matrix of features and F the information of the units' logits, the information is
    `A^T (F + damping) A`.

    Args:
        gradient_GK: Gradient of the K parameters of each of G groups, float64.
        features_UK: Factors of each unit on its group's parameters; zeros: it has none.
        group_of_U: Index of each unit's group, (U,) int64.
        s_U: Keep-probabilities, (U,).
        v_U: The `derivatives`, (U,), times the sharpness of the logits.
        feasible_set: The budgets.
        damping: Added to the information of every unit, positive.

    Returns:
        x, (G, K) float64; 0 in directions in which no unit has a feature.
    """
    omega_U = unit_information(s_U, v_U)

    def pooled(weights_N: Tensor, units: Tensor) -> Tensor:
        sums_GK = torch.zeros_like(gradient_GK)
        sums_GK.index_add_(0, group_of_U[units], weights_N[:, None] * features_UK[units])
        return sums_GK.reshape(-1)

    outer_UKK = features_UK[:, :, None] * features_UK[:, None, :]
    blocks_GKK = outer_UKK.new_zeros(len(gradient_GK), *outer_UKK.shape[1:])
    blocks_GKK.index_add_(0, group_of_U, (omega_U + damping)[:, None, None] * outer_UKK)
    information_PP = torch.block_diag(*blocks_GKK)
    for constraint in feasible_set.constraints_on(v_U.device):
        units = constraint.units
        q_N = v_U[units] * constraint.costs
        if float(q_N.sum()) > 0:
            omega_P, q_P = pooled(omega_U[units], units), pooled(q_N / q_N.sum(), units)
            crossed_PP = torch.outer(omega_P, q_P)
            information_PP -= crossed_PP + crossed_PP.T
            information_PP += omega_U[units].sum() * torch.outer(q_P, q_P)
    # Directions without a feature have neither information nor gradient.
    information_PP.diagonal().add_(1e-9 * damping)
    solved_P: Tensor = torch.linalg.solve(information_PP, gradient_GK.reshape(-1))
    return solved_P.reshape(gradient_GK.shape)
