"""The report's pictures of a policy, each a page of its own, as dashboards show them."""

from __future__ import annotations

from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.reporting.heat_map import keep_probability_map
from pgprune_lightning.reporting.page import document
from pgprune_lightning.reporting.sparsity_chart import sparsity_chart
from pgprune_lightning.reporting.style import CHART_STYLE


def policy_pictures(plan: PruningPlan, initial: PruningPlan | None) -> dict[str, str]:
    """HTML by name: keep-probabilities and sparsity by layer, of each kind of unit.

    Args:
        plan: The policy and its mask.
        initial: The untrained one, to compare the mask with.
    """
    pages: dict[str, str] = {}
    for kind in plan.space.kinds:
        drawn = {
            f"pictures/keep_probabilities/{kind}": keep_probability_map(plan, kind),
            f"pictures/sparsity_by_layer/{kind}": sparsity_chart(plan, kind, initial),
        }
        pages |= {name: document(name, figure, CHART_STYLE) for name, figure in drawn.items()}
    return pages
