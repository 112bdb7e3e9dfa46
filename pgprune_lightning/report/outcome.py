"""What a run has gained: dense, untrained and learned model, as tiles and as a table.

Shapes: N units of one kind.
"""

from __future__ import annotations

from pgprune_lightning.number_text import (
    count_text,
    finite,
    perplexity_text,
    seconds_text,
    share_text,
)
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.report.charts import KIND_NAMES, Table
from pgprune_lightning.report.curves import best_validation
from pgprune_lightning.report.run_record import RunRecord, at

MODELS = {"dense": "dense model", "initial": "untrained mask", "learned": "learned mask"}
PLAN_OF = {"initial": "initial", "learned": "best"}
NEAR_BOUND = 0.05


def outcome_tiles(record: RunRecord) -> list[tuple[str, str]]:
    """The numbers that a reader looks for first: (number, its name)."""
    pairs = [
        (perplexity_text(at(record.summary, key, "perplexity")), f"perplexity, {name}")
        for key, name in MODELS.items()
        if record.summary
    ]
    best = best_validation(record)
    if not record.summary and best is not None:
        pairs.append((perplexity_text(best[1]), "best validation perplexity so far"))
    share = kept_share(record)
    if share is not None:
        pairs.append((share_text(share), "of the parameters kept"))
    if record.summary:
        pairs.append((seconds_text(record.summary.get("seconds")), "from start to end"))
    return pairs


def outcome_table(record: RunRecord) -> Table:
    """Perplexity on each text, and parameters, of the three models."""
    text = record.summary.get("text")
    others = at(record.summary, "learned", "other_texts")
    texts = [] if text is None else [str(text), *(others if isinstance(others, dict) else {})]
    rows = []
    for key, name in MODELS.items():
        measured = [_perplexity(record, key, index, label) for index, label in enumerate(texts)]
        plan = record.plans.get(PLAN_OF.get(key, ""))
        validated = None if plan is None else plan.validation.get("perplexity")
        count, share = _parameters(record, key)
        rows.append(
            [name, *measured, perplexity_text(validated), count_text(count), share_text(share)]
        )
    head = ["perplexity", *texts, _validation_name(record), "parameters", "of dense"]
    return Table(head, rows, chosen=(2,))


def decision_table(before: PruningPlan, after: PruningPlan) -> Table:
    """How the decisions of the learned mask differ from those of the untrained one."""
    rows = []
    for kind in after.space.kinds:
        units_N = after.space.units_of(kind)
        first_N, last_N = before.mask_U[units_N], after.mask_U[units_N]
        s_N = after.keep_probabilities_U[units_N]
        moved_N = (s_N - before.keep_probabilities_U[units_N]).abs()
        undecided_N = (s_N > NEAR_BOUND) & (s_N < 1 - NEAR_BOUND)
        rows.append(
            [
                KIND_NAMES[kind],
                f"{len(units_N):,}",
                f"{int(first_N.sum()):,}",
                f"{int(last_N.sum()):,}",
                f"{int((first_N & ~last_N).sum()):,}",
                f"{int((~first_N & last_N).sum()):,}",
                f"{float(moved_N.mean()):.3f}",
                share_text(float(undecided_N.double().mean())),
            ]
        )
    head = ["units", "all", "kept untrained", "kept learned", "newly removed", "brought back"]
    return Table([*head, "mean change of s", "s from 0.05 to 0.95"], rows)


def kept_share(record: RunRecord) -> float | None:
    """The share of the dense model's parameters that the learned mask keeps."""
    return _parameters(record, "learned")[1]


def _perplexity(record: RunRecord, key: str, index: int, label: str) -> str:
    if index == 0:
        return perplexity_text(at(record.summary, key, "perplexity"))
    return perplexity_text(at(record.summary, key, "other_texts", label))


def _parameters(record: RunRecord, key: str) -> tuple[float | None, float | None]:
    dense = finite(at(record.summary, "dense", "parameters"))
    count = finite(at(record.summary, key, "parameters"))
    plan = record.plan if key == "learned" else record.plans.get("initial")
    if plan is not None and count is None:
        dense = float(plan.space.total_parameters)
        count = dense if key == "dense" else float(plan.kept_parameters)
    return count, (count / dense if count is not None and dense else None)


def _validation_name(record: RunRecord) -> str:
    text = None if record.plan is None else record.plan.validation.get("text")
    return "validation" if text is None else f"validation: {text}"
