"""Fisher information of Bernoulli variables in logits that are shifted onto a budget.

With v the derivative of s by its own logit at a fixed shift, c the costs and C = sum(c v), a
budget's probabilities answer its logits by `J = V (1 - e (c v)^T / C)`, e all ones. The Fisher
information of a probability is 1 / (s (1 - s)), so that of the logits is, with
`omega = v^2 / (s (1 - s))` and `q = c v`, diagonal but for two directions:
`J^T diag(1 / (s (1 - s))) J = diag(omega) - (omega q^T + q omega^T) / C + sum(omega) q q^T / C^2`.

Shapes: U units of the whole model, N free units of one constraint, P parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgprune_lightning.policy.budget import FeasibleSet


def natural_logit_gradient(
    gradient_U: Tensor, s_U: Tensor, v_U: Tensor, feasible_set: FeasibleSet, *, damping: float
) -> Tensor:
    """Solve (Fisher information + damping) x = gradient for one free logit a unit.

    Args:
        gradient_U: Gradient of the logits, (U,) float64.
        s_U: Keep-probabilities, (U,).
        v_U: Their derivatives by their own logits at a fixed shift, (U,).
        feasible_set: The budgets.
        damping: Added to every unit's information, positive.

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
        gradient_N = gradient_U[units]
        first_N = gradient_N / diagonal_N
        if float(q_N.sum()) > 0:
            # Woodbury's identity for the two directions; their inverse core has a closed form.
            directions_N2 = torch.stack([omega_N, q_N], dim=1)
            core = _inverse_core(omega_N.sum(), q_N.sum())
            core = core + directions_N2.T @ (directions_N2 / diagonal_N[:, None])
            first_N -= (
                directions_N2 @ torch.linalg.solve(core, directions_N2.T @ first_N)
            ) / diagonal_N
        solved_U[units] = first_N
    return solved_U


def _inverse_core(omega_sum: Tensor, q_sum: Tensor) -> Tensor:
    """Inverse of [[0, -1/C], [-1/C, sum(omega)/C^2]]."""
    zero = torch.zeros_like(omega_sum)
    return torch.stack([torch.stack([-omega_sum, -q_sum]), torch.stack([-q_sum, zero])])


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
    """Solve the same for parameters that units of a group share, logit = features @ parameters.

    With A the matrix of features it is `A^T (F + damping) A`, F that of the units' logits.

    Args:
        gradient_GK: Gradient of the K parameters of each of G groups, float64.
        features_UK: What each unit multiplies its group's parameters by; zeros: it has none.
        group_of_U: Index of each unit's group, (U,) int64.
        s_U: Keep-probabilities, (U,).
        v_U: Their derivatives by their own logits at a fixed shift, (U,).
        feasible_set: The budgets.
        damping: Added to every unit's information, positive.

    Returns:
        x, (G, K) float64; 0 in directions that no unit has a feature in.
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
