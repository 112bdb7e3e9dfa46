import torch

from pgprune_lightning.policy import UnitLayout
from pgprune_lightning.policy.control_variates import (
    kept_unit_features,
    unit_loadings,
    unit_slopes,
)
from tests.exact_estimates import all_masks

SPACE = UnitLayout.build([(0, "kv_group", 1, 7, 0), (0, "mlp_channel", 3, 3, 0)], 100)
S = torch.tensor([0.6, 0.3, 0.8, 0.5], dtype=torch.float64)
LOADINGS = unit_loadings(SPACE, S)


def test_features_under_the_initial_policy_are_centred_and_of_variance_one() -> None:
    masks_MU = all_masks(4)
    p_M = torch.where(masks_MU, S, 1 - S).prod(dim=1)
    features_MF = kept_unit_features(SPACE, LOADINGS, masks_MU.double() - S)
    torch.testing.assert_close(p_M @ features_MF, torch.zeros(4, dtype=torch.float64))
    # The one head is weighted like itself, so its second feature is none.
    covariance_FF = features_MF.T @ (p_M[:, None] * features_MF)
    expected_FF = torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(covariance_FF, expected_FF, atol=1e-12, rtol=0)


def test_features_count_kept_units_and_weigh_them_by_their_logit() -> None:
    deviations_SU = torch.tensor([[0.0, 1, 1, 0], [0, 0, 0, 2]], dtype=torch.float64)
    features_SF = kept_unit_features(SPACE, LOADINGS, deviations_SU)
    variance_N = S[1:] * (1 - S[1:])
    deviation = variance_N.sum().sqrt()
    assert torch.allclose(features_SF[:, 2], torch.tensor([2.0, 2.0]).double() / deviation)
    logits_N = S[1:].logit() - variance_N @ S[1:].logit() / variance_N.sum()
    weights_N = logits_N / (variance_N @ logits_N.square()).sqrt()
    expected_S = torch.stack([weights_N[0] + weights_N[1], 2 * weights_N[2]])
    torch.testing.assert_close(features_SF[:, 3], expected_S)


def test_slopes_are_the_derivatives_of_the_function() -> None:
    coefficients_F = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    m_U = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    value = kept_unit_features(SPACE, LOADINGS, m_U - S) @ coefficients_F
    (expected_U,) = torch.autograd.grad(value, m_U)
    torch.testing.assert_close(unit_slopes(SPACE, LOADINGS, coefficients_F), expected_U[0])


def test_certain_and_equal_probabilities_make_finite_features() -> None:
    for start in ([1.0, 1.0, 1.0, 1.0], [0.0, 0.5, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5]):
        loadings_U2 = unit_loadings(SPACE, torch.tensor(start, dtype=torch.float64))
        assert bool(loadings_U2.isfinite().all())
    equal_U2 = unit_loadings(SPACE, torch.full((4,), 0.7, dtype=torch.float64))
    assert equal_U2[:, 1].tolist() == [0.0] * 4
