"""Expectation and variance of an estimator, exactly: every draw of a step, with its probability.

Shapes: S mask samples, U units, M masks that there are, X texts that there are.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgprune_lightning.policy import GradientEstimator, MaskSamples
from pgprune_lightning.policy.estimators import antithetic_masks

Draw = tuple[float, Tensor]
"""Probability of a step's masks, and the masks, (S, U) bool."""


def all_masks(num_units: int) -> Tensor:
    """Every mask, (2^U, U) bool, in the order of the binary numbers."""
    return torch.tensor(list(itertools.product([False, True], repeat=num_units)))


def mask_samples(losses_S: Tensor, masks_SU: Tensor, s_U: Tensor, **more: Any) -> MaskSamples:
    """Samples that all read the same batch."""
    return MaskSamples(masks_SU, losses_S, s_U, **more)


@dataclass(frozen=True)
class Toy:
    """A policy over few units, and the loss of every mask on every text; texts are equally likely.

    Args:
        s_U: Keep-probabilities, (U,) float64.
        losses_XM: Losses, (X, 2^U) float64, masks in the order of `all_masks`.
        dense_X: Losses of the dense model, (X,) float64.
    """

    s_U: Tensor
    losses_XM: Tensor
    dense_X: Tensor

    def gradient(self) -> Tensor:
        """Differentiate the polynomial sum over m of p(m | s) L(m) itself, (U,)."""
        s_U = self.s_U.clone().requires_grad_()
        p_M = torch.where(all_masks(len(s_U)), s_U, 1 - s_U).prod(dim=1)
        return torch.autograd.grad(p_M @ self.losses_XM.mean(dim=0), s_U)[0]

    def samples(self, masks_SU: Tensor, texts: Sequence[int]) -> MaskSamples:
        """What a step with these masks learns, its texts in turn having equally many."""
        slots_S = torch.arange(len(texts)).repeat_interleave(len(masks_SU) // len(texts))
        texts_S = torch.tensor(texts)[slots_S]
        powers_U = 2 ** torch.arange(len(self.s_U)).flip(0)
        rows_S = (masks_SU * powers_U).sum(dim=1)
        return MaskSamples(
            masks_SU=masks_SU,
            losses_S=self.losses_XM[texts_S, rows_S],
            keep_probabilities_U=self.s_U,
            num_texts=len(texts),
            dense_losses_S=self.dense_X[texts_S],
        )

    def moments(
        self, estimator: GradientEstimator, draws: list[Draw], num_texts: int = 1
    ) -> tuple[Tensor, float]:
        """Expectation, (U,), and variance summed over the units, each draw from the same state."""
        choices = list(itertools.product(range(len(self.dense_X)), repeat=num_texts))
        mean_U, square = torch.zeros_like(self.s_U), 0.0
        for probability, masks_SU in draws:
            for texts in choices:
                fresh = copy.deepcopy(estimator)
                gradient_U = fresh.estimate(self.samples(masks_SU, texts))
                mean_U += probability / len(choices) * gradient_U
                square += probability / len(choices) * float(gradient_U.square().sum())
        return mean_U, square - float(mean_U.square().sum())

    def train(
        self, estimator: GradientEstimator, num_steps: int, num_masks: int, num_texts: int = 1
    ) -> None:
        """Let an estimator see some steps of the policy, which stays as it is."""
        generator = torch.Generator().manual_seed(1)
        for _ in range(num_steps):
            masks_SU = estimator.draw(self.s_U, num_masks, generator)
            texts = torch.randint(len(self.dense_X), (num_texts,), generator=generator).tolist()
            estimator.estimate(self.samples(masks_SU, texts))


def quadratic_toy(
    s_U: Tensor, text_effect: float = 0.0, loss: Callable[[Tensor], Tensor] | None = None
) -> Toy:
    """Losses with linear, quadratic and triple terms in the dropped units, on two texts.

    Args:
        s_U: Keep-probabilities, (U,) float64.
        text_effect: How much harder the second text is under every mask, in nats per token.
        loss: Maps dropped units, (M, U) float64, to losses, (M,), instead.
    """
    generator = torch.Generator().manual_seed(0)
    dropped_MU = (~all_masks(len(s_U))).double()
    linear_U = torch.rand(len(s_U), generator=generator, dtype=torch.float64) + 0.5
    pairs_UU = torch.randn(len(s_U), len(s_U), generator=generator, dtype=torch.float64) * 0.3
    loss_M = 3 + dropped_MU @ linear_U + ((dropped_MU @ pairs_UU) * dropped_MU).sum(dim=1)
    loss_M += 0.5 * dropped_MU[:, :3].prod(dim=1)
    if loss is not None:
        loss_M = loss(dropped_MU)
    dense_X = torch.tensor([2.0, 3.0], dtype=torch.float64)
    # The harder text suffers a little more from each mask, too.
    effects_X1 = text_effect * torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    return Toy(s_U, loss_M + effects_X1 * (1 + 0.1 * dropped_MU.sum(dim=1)), dense_X)


def independent_draws(s_U: Tensor, num_masks: int) -> list[Draw]:
    """All tuples of independent masks."""
    masks_MU = all_masks(len(s_U))
    p_M = torch.where(masks_MU, s_U, 1 - s_U).prod(dim=1)
    tuples = itertools.product(range(len(masks_MU)), repeat=num_masks)
    return [(float(p_M[list(rows)].prod()), masks_MU[list(rows)]) for rows in tuples]


def antithetic_draws(s_U: Tensor, num_pairs: int) -> list[Draw]:
    """All that pairs of opposite masks can be: s and 1 - s cut each unit's u into three cells."""
    low_U, high_U = torch.minimum(s_U, 1 - s_U), torch.maximum(s_U, 1 - s_U)
    edges_U4 = torch.stack([torch.zeros_like(s_U), low_U, high_U, torch.ones_like(s_U)], dim=1)
    middles_U3, lengths_U3 = (edges_U4[:, 1:] + edges_U4[:, :-1]) / 2, edges_U4.diff(dim=1)
    units = torch.arange(len(s_U))
    pairs = [
        (float(lengths_U3[units, list(cells)].prod()), middles_U3[units, list(cells)])
        for cells in itertools.product(range(3), repeat=len(s_U))
    ]
    draws = []
    for chosen in itertools.product(pairs, repeat=num_pairs):
        probability = torch.tensor([p for p, _ in chosen], dtype=torch.float64).prod()
        draws.append(
            (float(probability), antithetic_masks(torch.stack([u for _, u in chosen]), s_U))
        )
    return draws
