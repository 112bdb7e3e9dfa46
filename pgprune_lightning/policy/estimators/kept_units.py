"""A few numbers that describe a mask: what it keeps of each layer and kind.

Shapes: S samples, U units, G groups (one a layer and kind), N units of a group.
"""

import torch
from torch import Tensor

from pgprune_lightning.policy.mask_space import MaskSpace

LEAST_PROBABILITY = 1e-3
"""Where logits of probabilities are cut off: at 0 and 1 they are infinite."""


def unit_loadings(space: MaskSpace, initial_probabilities_U: Tensor) -> Tensor:
    """What each unit adds to the two features of its group when it is kept.

    The features of a group are the number of kept units, and the kept units weighted by the logit
    of their initial probability, which is their metric. Under the initial policy they have
    variance 1 and are not correlated, so that one ridge penalty suits all of them.

    Args:
        space: The units.
        initial_probabilities_U: Keep-probabilities, (U,) float64, from 0 to 1.

    Returns:
        Loadings, (U, 2) float64; the second is 0 where all logits of a group are equal.
    """
    loadings = [
        _group_loadings(space.view(initial_probabilities_U.double(), group.layer, group.kind))
        for group in space.groups
    ]
    return torch.cat(loadings)


def _group_loadings(s_N: Tensor) -> Tensor:
    s_N = s_N.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    variance_N, logit_N = s_N * (1 - s_N), s_N.logit()
    variance = variance_N.sum()
    centred_N = logit_N - (variance_N @ logit_N) / variance
    spread = variance_N @ centred_N.square()
    # Equal logits differ by rounding only.
    varies = spread > 1e-12 * (variance_N @ logit_N.square())
    weight_N = torch.where(varies, centred_N / spread.sqrt(), 0.0)
    return torch.stack([(1 / variance.sqrt()).expand_as(weight_N), weight_N], dim=1)


def kept_unit_features(space: MaskSpace, loadings_U2: Tensor, deviations_SU: Tensor) -> Tensor:
    """The features of masks, less their expectation.

    Args:
        space: The units.
        loadings_U2: `unit_loadings`, (U, 2).
        deviations_SU: Masks less keep-probabilities, (S, U), in the loadings' type.

    Returns:
        Features, (S, 2 G), in the loadings' type.
    """
    # A product a group instead of one scattered sum, whose order is chance on some devices.
    features = [
        deviations_SU[:, group.start : group.end] @ loadings_U2[group.start : group.end]
        for group in space.groups
    ]
    return torch.cat(features, dim=1)


def unit_slopes(space: MaskSpace, loadings_U2: Tensor, coefficients_F: Tensor) -> Tensor:
    """What a linear function of the features gains when a unit is kept.

    Args:
        space: The units.
        loadings_U2: `unit_loadings`, (U, 2).
        coefficients_F: Coefficients of the features, (2 G,).

    Returns:
        Slopes, (U,), in the loadings' type.
    """
    # Counts as a tensor would be copied to the device, for which the host waits.
    by_unit_U2 = torch.cat(
        [
            slopes_2.expand(group.count, 2)
            for slopes_2, group in zip(coefficients_F.view(-1, 2), space.groups, strict=True)
        ]
    )
    return (by_unit_U2 * loadings_U2).sum(dim=1)
