import pytest
import torch

from pgprune_lightning.policy import LeaveOneOut, MaskSamples
from tests.exact_estimates import independent_draws, mask_samples, quadratic_toy

S = torch.tensor([0.3, 0.6], dtype=torch.float64)
MASKS = torch.tensor([[True, False], [True, True], [False, False], [False, True]])
LOSSES = torch.tensor([4.0, 3.0, 7.0, 5.0], dtype=torch.float64)


def of_texts(num_texts: int, losses_S: torch.Tensor = LOSSES) -> MaskSamples:
    return mask_samples(losses_S, MASKS, S, num_texts=num_texts)


@pytest.mark.parametrize(("num_texts", "per_text"), [(1, 4), (2, 2), (4, 1)])
def test_masks_lie_text_by_text(num_texts: int, per_text: int) -> None:
    assert of_texts(num_texts).masks_per_text == per_text


def test_other_losses_are_gathered_anew() -> None:
    def of_two_ranks(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values, 10 * values])

    samples = of_texts(1)
    assert samples.with_losses(LOSSES - 1).losses_R.tolist() == (LOSSES - 1).tolist()
    shared = samples.among_ranks(of_two_ranks)
    assert shared.losses_R.tolist() == of_two_ranks(LOSSES).tolist()
    assert shared.with_losses(LOSSES - 1).losses_R.tolist() == of_two_ranks(LOSSES - 1).tolist()
    assert shared.losses_S is LOSSES


def test_leave_one_out_compares_masks_of_the_same_text() -> None:
    harder = LOSSES + torch.tensor([0.0, 0.0, 100.0, 100.0], dtype=torch.float64)
    gradient_U = LeaveOneOut().estimate(of_texts(2))
    torch.testing.assert_close(LeaveOneOut().estimate(of_texts(2, losses_S=harder)), gradient_U)
    pairs = [
        LeaveOneOut().estimate(mask_samples(LOSSES[rows], MASKS[rows], S))
        for rows in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(gradient_U, (pairs[0] + pairs[1]) / 2)


def test_leave_one_out_of_one_mask_a_text_compares_all_ranks() -> None:
    elsewhere = torch.tensor([9.0, 1.0, 2.0, 2.0], dtype=torch.float64)
    shared = of_texts(4).among_ranks(lambda values: torch.cat([values, elsewhere]))
    everyone = torch.cat([LOSSES, elsewhere])
    advantages_S = torch.stack(
        [LOSSES[i] - (everyone.sum() - LOSSES[i]) / (len(everyone) - 1) for i in range(4)]
    )
    score_SU = torch.where(MASKS, 1 / S, -1 / (1 - S))
    torch.testing.assert_close(LeaveOneOut().estimate(shared), advantages_S @ score_SU / 4)


@pytest.mark.parametrize(("num_masks", "num_texts"), [(2, 2), (4, 2), (2, 1)])
def test_leave_one_out_is_unbiased_over_texts(num_masks: int, num_texts: int) -> None:
    toy = quadratic_toy(S, text_effect=3.0)
    mean_U, _ = toy.moments(LeaveOneOut(), independent_draws(S, num_masks), num_texts)
    torch.testing.assert_close(mean_U, toy.gradient(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("num_masks", [2, 3, 4, 7, 8, 16, 33])
def test_one_text_is_averaged_as_it_always_was(num_masks: int) -> None:
    """To the last digit: runs of one mask a batch are repeated exactly."""
    generator = torch.Generator().manual_seed(num_masks)
    losses_S = torch.rand(num_masks, generator=generator, dtype=torch.float64) + 4
    masks_SU = torch.rand(num_masks, 2, generator=generator, dtype=torch.float64) < S
    advantages_S = (losses_S - losses_S.mean()) * (num_masks / (num_masks - 1))
    score_SU = torch.where(masks_SU, 1 / S, -1 / (1 - S))
    expected_U = advantages_S @ score_SU / num_masks
    assert LeaveOneOut().estimate(mask_samples(losses_S, masks_SU, S)).equal(expected_U)
