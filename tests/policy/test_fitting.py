import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgprune_lightning.policy import fitting
from tests.policy.greedy_fit import greedy

VALUES = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 1e-300]),
    st.floats(allow_nan=False, allow_infinity=True),
    st.floats(0, 1),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=40), st.integers(0, 150))
def test_down_a_ranking_it_equals_a_greedy_loop(costs: list[int], limit: int) -> None:
    kept = fitting.fitting(torch.tensor(costs, dtype=torch.float64), limit)
    assert kept.tolist() == greedy([0.0] * len(costs), costs, limit)


@settings(deadline=None, max_examples=500)
@given(
    st.lists(st.tuples(VALUES, st.sampled_from([1, 3, 171])), min_size=1, max_size=60),
    st.floats(0, 1.2),
    st.integers(1, 8),
)
def test_without_sorting_all_it_equals_a_greedy_loop(
    units: list[tuple[float, int]], share: float, at_once: int
) -> None:
    values, costs = [value for value, _ in units], [cost for _, cost in units]
    limit = math.floor(share * sum(costs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "SORTED_AT_ONCE", at_once)
        kept = fitting.most_probable(
            torch.tensor(values, dtype=torch.float64),
            torch.tensor(costs, dtype=torch.float64),
            limit,
        )
    assert kept.tolist() == greedy(values, costs, limit)


def test_few_of_many_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    s_N = torch.randn(100_000, generator=generator, dtype=torch.float64)
    costs_N = torch.ones_like(s_N)
    costs_N[::1000] = 171
    sorted_units: list[int] = []
    argsort = torch.Tensor.argsort

    def counted(values: torch.Tensor, **options: bool) -> torch.Tensor:
        sorted_units.append(len(values))
        return argsort(values, **options)

    monkeypatch.setattr(torch.Tensor, "argsort", counted)
    kept_N = fitting.most_probable(s_N, costs_N, 50_000)
    assert sum(sorted_units) <= 2 * fitting.SORTED_AT_ONCE
    assert costs_N[kept_N].sum() == 50_000
