"""Sampling masks, their log-probability, and its gradient."""

import itertools

import torch

from pgprune_lightning.policy import mask_generator, sample_masks, score

S = torch.tensor([0.0, 1e-3, 0.3, 0.5, 0.97, 1.0], dtype=torch.float64)


def log_probability(masks, s):
    """Log p(m | s), eq. 2."""
    return torch.where(masks, s, 1 - s).log().sum(dim=-1)


def test_frequencies_are_the_probabilities():
    samples = 200_000
    masks = sample_masks(S, samples, mask_generator(0, 0, 0))
    assert masks.shape == (samples, 6)
    assert masks.dtype == torch.bool
    deviation = (S * (1 - S) / samples).sqrt()
    # At 0 and 1 the deviation is 0: never, and always.
    assert ((masks.double().mean(0) - S).abs() <= 5 * deviation).all()


def test_units_and_samples_are_independent():
    samples = 200_000
    masks = sample_masks(torch.full((4,), 0.5).double(), samples, mask_generator(0, 0, 0))
    signs = masks.double() * 2 - 1
    bound = 5 / samples**0.5
    assert (signs.T @ signs / samples - torch.eye(4)).abs().max() <= bound
    assert (signs[1:] * signs[:-1]).mean(0).abs().max() <= bound


def test_the_generator_is_a_function_of_its_arguments():
    def draw(*arguments):
        return torch.rand(8, generator=mask_generator(*arguments))

    assert draw(3, 14, 1).equal(draw(3, 14, 1))
    others = [draw(3, 14, 0), draw(3, 15, 1), draw(4, 14, 1), draw(31, 4, 1), draw(3, 1, 41)]
    for one, other in itertools.combinations([draw(3, 14, 1), *others], 2):
        assert not one.equal(other)


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = sample_masks(S, 10, mask_generator(1, 2, 3))
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(6)
    assert sample_masks(S, 10, mask_generator(1, 2, 3)).equal(first)


def test_probabilities_of_all_masks_sum_to_one():
    masks = torch.tensor(list(itertools.product([False, True], repeat=6)))
    log_probabilities = log_probability(masks, S)
    torch.testing.assert_close(log_probabilities.exp().sum().item(), 1.0)
    impossible = masks[:, 0] | ~masks[:, 5]
    assert log_probabilities.isneginf().equal(impossible)


def test_score_is_the_gradient_of_the_log_probability():
    s = S[1:5].clone().requires_grad_()
    masks = torch.tensor(list(itertools.product([False, True], repeat=4)))
    gradients = [torch.autograd.grad(log_probability(mask, s), s)[0] for mask in masks]
    torch.testing.assert_close(score(masks, s), torch.stack(gradients))
    s = S[1:5]
    torch.testing.assert_close(score(masks, s), (masks.double() - s) / (s * (1 - s)))


def test_score_is_exactly_zero_at_the_bounds():
    masks = torch.tensor([[False, False, True, True], [True, True, False, False]])
    result = score(masks, torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64))
    assert result.tolist() == [[0.0] * 4] * 2


def test_score_keeps_its_digits_near_a_bound():
    s = torch.tensor([1e-300, 1 - 2**-52], dtype=torch.float64)
    result = score(torch.tensor([[True, False], [False, True]]), s)
    torch.testing.assert_close(result[0], torch.tensor([1e300, -(2.0**52)], dtype=torch.float64))
    torch.testing.assert_close(result[1], torch.tensor([-1.0, 1.0], dtype=torch.float64))
