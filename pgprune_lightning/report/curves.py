"""Which metrics of a run are drawn, and how."""

from __future__ import annotations

from collections.abc import Sequence

from pgprune_lightning.number_text import perplexity_text
from pgprune_lightning.report.charts import (
    KIND_NAMES,
    Chart,
    LineChart,
    Point,
    Series,
    removed_by_layer,
)
from pgprune_lightning.report.run_record import RunRecord

VALIDATION = "val/perplexity"
NATS = "nats per token"


def main_curves(record: RunRecord) -> list[Chart]:
    """Loss and baseline, validation, and how far the policy has decided."""
    charts = [_loss(record), _validation(record), *_decisions(record)]
    return [drawn for chart in charts if (drawn := chart.draw()) is not None]


def more_curves(record: RunRecord) -> list[Chart]:
    """What tells how the estimate fares, for those who look for a reason."""
    charts = [
        _single(record, "Advantage: loss less baseline", "train/advantage", NATS),
        _single(record, "Loss: standard deviation over the masks", "train/loss_spread", NATS),
        _single(
            record, "Norm of the gradient", "train/gradient_norm", "nats per token and unit of s"
        ),
        _single(record, "Expected keep ratio", "policy/expected_keep_ratio", "kept", True),
        _single(record, "Parameters removed by the mask", "sparsity/parameters", "removed", True),
    ]
    return [drawn for chart in charts if (drawn := chart.draw()) is not None]


def compared_curves(records: Sequence[RunRecord]) -> list[Chart]:
    """The same curves of several runs, one line each; and their masks by layer."""
    charts = [
        LineChart(
            title="Validation perplexity",
            y_label="perplexity",
            series=_one_each(records, VALIDATION),
            note=_text_note(records),
        ),
        LineChart(
            title="Training loss",
            y_label=NATS,
            series=_one_each(records, "train/loss"),
            note="Means over neighbouring steps; each run's masks and texts are its own.",
        ),
        *_compared_layers(records),
    ]
    return [drawn for chart in charts if (drawn := chart.draw()) is not None]


def best_validation(record: RunRecord) -> Point | None:
    """Step and perplexity of the best validation, as the best plan has it, or the metrics."""
    best = record.plans.get("best")
    if best is not None and isinstance(best.validation.get("perplexity"), float):
        return float(best.step), best.validation["perplexity"]
    points = record.metrics.get(VALIDATION, [])
    return min(points, key=lambda point: point[1], default=None)


def _loss(record: RunRecord) -> LineChart:
    loss = record.metrics.get("train/loss", [])
    return LineChart(
        title="Loss and baseline",
        y_label=NATS,
        series=[
            Series("loss, mean over the masks", loss, 0, with_range=True),
            Series("baseline", record.metrics.get("train/baseline", []), 1),
        ],
    )


def _validation(record: RunRecord) -> LineChart:
    best = best_validation(record)
    spots = []
    if best is not None:
        spots = [(best, f"best {perplexity_text(best[1])}, step {best[0]:,.0f}", 1)]
    return LineChart(
        title="Validation perplexity",
        y_label="perplexity",
        series=[Series("perplexity", record.metrics.get(VALIDATION, []))],
        spots=spots if record.metrics.get(VALIDATION) else (),
        note=_text_note([record]),
    )


def _decisions(record: RunRecord) -> list[LineChart]:
    charts = [
        LineChart(
            title=f"How s moved to the bounds: {KIND_NAMES[kind]}",
            y_label="share of the units",
            series=_decided(record, kind),
            percent=True,
            from_zero=True,
            note="Near: within a twentieth of the way from one bound to the other.",
        )
        for kind in KIND_NAMES
        if f"policy/near_lower/{kind}" in record.metrics
    ]
    old = _single(record, "Units on a bound", "policy/share_at_bounds", "share", True)
    return charts or [old]


def _decided(record: RunRecord, kind: str) -> list[Series]:
    lower = record.metrics[f"policy/near_lower/{kind}"]
    upper = record.metrics.get(f"policy/near_upper/{kind}", [])
    at_upper = dict(upper)
    between = [(x, 1 - y - at_upper[x]) for x, y in lower if x in at_upper]
    return [
        Series("near the upper bound (kept)", upper, 0),
        Series("near the lower bound (removed)", lower, 1),
        Series("undecided", between, 6),
    ]


def _single(
    record: RunRecord, title: str, metric: str, y_label: str, percent: bool = False
) -> LineChart:
    series = Series(title, record.metrics.get(metric, []), 0, with_range=True)
    return LineChart(
        title=title, y_label=y_label, series=[series], percent=percent, from_zero=percent
    )


def _one_each(records: Sequence[RunRecord], metric: str) -> list[Series]:
    return [
        Series(record.name, record.metrics.get(metric, []), style)
        for style, record in enumerate(records)
    ]


def _compared_layers(records: Sequence[RunRecord]) -> list[LineChart]:
    plans = [(style, record.name, record.plan) for style, record in enumerate(records)]
    charts = []
    for kind in KIND_NAMES:
        series = [
            Series(
                name,
                [(float(layer), share) for layer, share in removed_by_layer(plan, kind).items()],
                style,
            )
            for style, name, plan in plans
            if plan is not None and kind in plan.space.kinds
        ]
        charts.append(
            LineChart(
                title=f"Sparsity by layer: {KIND_NAMES[kind]}",
                y_label="removed",
                series=series,
                x_label="layer",
                percent=True,
                from_zero=True,
            )
        )
    return charts


def _text_note(records: Sequence[RunRecord]) -> str | None:
    """What validation reads, where all runs read the same."""
    labels = set()
    for record in records:
        validation = {} if record.plan is None else record.plan.validation
        if "text" in validation:
            labels.add(f"{validation['text']}, {validation.get('sequence_length')} tokens")
    return labels.pop() if len(labels) == 1 else None
