"""Independent Bernoulli variables, one for each unit: the distribution that masks are drawn from.

Shapes: S samples, U units.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def sample_masks(
    keep_probabilities_U: Tensor, num_samples: int, generator: torch.Generator
) -> Tensor:
    """Draw masks whose units are independent of one another.

    Args:
        keep_probabilities_U: Probabilities s, (U,) float64, from 0 to 1.
        num_samples: Number of masks S.
        generator: Source of the randomness, on the device of the probabilities.

    Returns:
        Masks, (S, U) bool, True keeps.

    Source: eq. 2.
    """
    s_U = keep_probabilities_U.detach()
    # In [0, 1) and in float64, so that s = 0 never keeps a unit and s = 1 always does.
    uniform_SU = torch.rand(
        (num_samples, len(s_U)), generator=generator, dtype=s_U.dtype, device=s_U.device
    )
    return uniform_SU < s_U


def score(masks_SU: Tensor, keep_probabilities_U: Tensor) -> Tensor:
    """Gradient of log p(m | s) with respect to s.

    Args:
        masks_SU: Masks, (S, U) bool.
        keep_probabilities_U: Probabilities s, (U,) float64, from 0 to 1.

    Returns:
        (m - s) / (s (1 - s)), (S, U) float64; exactly 0 where s is 0 or 1, since such a unit
        cannot be drawn otherwise.

    Source: eq. 5 and remark 4.
    """
    assert masks_SU.dtype == torch.bool, masks_SU.dtype
    s_U = keep_probabilities_U.detach()
    # The two values of the fraction, cancelled by hand: no digit is lost near the bounds.
    score_SU = torch.where(masks_SU, 1 / s_U, -1 / (1 - s_U))
    return torch.where((s_U > 0) & (s_U < 1), score_SU, 0.0)


def mask_generator(
    seed: int, step: int, rank: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Make the generator for the masks of one step on one rank.

    It is a pure function of its arguments, so that a resumed run draws what the uninterrupted
    one would have drawn.

    Args:
        seed: Seed of the run.
        step: Number of optimizer steps already taken.
        rank: Rank of this process.
        device: Where the masks are drawn.

    Returns:
        A fresh generator.
    """
    digest = hashlib.sha256(f"masks seed={seed} step={step} rank={rank}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
