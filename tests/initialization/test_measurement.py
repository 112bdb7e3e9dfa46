"""A measurement goes on from every part that was kept, to the same bits; its bar knows its end.

Shapes: U units.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization import measurement
from pgprune_lightning.initialization.initial_policy import METRICS, MetricName
from pgprune_lightning.initialization.measurement import Measurement
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.initialization.refinement import refined
from pgprune_lightning.policy import FeasibleSet
from tests.tiny_models import random_tokens

BATCHES = [random_tokens(2, 12, seed=seed) for seed in range(3)]
TEXT_METRICS = [name for name, metric in METRICS.items() if metric.reads_text]
PARTS = {"layerwise_ppl": 9, "bonsai": 3 + 3 + 8}
"""Of the three layers times three batches; of prior, dense model and pairs."""

Measure = Callable[[MetricInputs], Tensor]


@pytest.fixture(autouse=True)
def _few_pairs_and_every_part_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgprune_lightning.initialization.bonsai.NUM_PAIRS", 8)
    monkeypatch.setattr(measurement, "SECONDS_BETWEEN_SAVES", 0.0)


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    content = io.BytesIO()
    torch.save(state, content)
    content.seek(0)
    loaded: dict[str, Any] = torch.load(content, weights_only=True)
    return loaded


def _check_every_part(measure: Measure, inputs: MetricInputs, parts: int) -> None:
    states: list[dict[str, Any]] = []
    kept = dataclasses.replace(inputs, measurement=Measurement(save=states.append))
    whole_U = measure(kept)
    assert torch.equal(measure(inputs), whole_U), "keeping it changes nothing"
    assert len(states) == parts
    for number, state in enumerate(states, 1):
        later: list[dict[str, Any]] = []
        resumed = Measurement(_through_a_file(state), later.append)
        again_U = measure(dataclasses.replace(inputs, measurement=resumed))
        assert torch.equal(again_U, whole_U), number
        assert len(later) == parts - number


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_a_metric_goes_on_from_every_part(
    metric_inputs: Callable[..., MetricInputs], name: MetricName
) -> None:
    kinds = ["kv_group", "mlp_channel"]
    inputs = metric_inputs(kinds if "kv_group" in METRICS[name].unit_kinds else ["layer"], BATCHES)
    _check_every_part(METRICS[name], inputs, PARTS.get(name, len(BATCHES)))


def test_a_refinement_goes_on_behind_its_metric(
    metric_inputs: Callable[..., MetricInputs],
) -> None:
    inputs = metric_inputs(["kv_group", "mlp_channel"], BATCHES)
    feasible_set = FeasibleSet(inputs.space, 0.5)

    def measure(inputs: MetricInputs) -> Tensor:
        return refined(METRICS["taylor"](inputs), inputs, feasible_set, steps=4)

    _check_every_part(measure, inputs, len(BATCHES) + 4)


def test_one_metric_twice_is_measured_twice(metric_inputs: Callable[..., MetricInputs]) -> None:
    states: list[dict[str, Any]] = []
    inputs = metric_inputs(["layer"], BATCHES)
    kept = dataclasses.replace(inputs, measurement=Measurement(save=states.append))
    first_U, second_U = METRICS["taylor"](kept), METRICS["taylor"](kept)
    assert torch.equal(first_U, second_U)
    assert len(states) == 2 * len(BATCHES)


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_the_bar_has_a_total_from_the_first_part_on(
    metric_inputs: Callable[..., MetricInputs],
    name: MetricName,
    capsys: pytest.CaptureFixture[str],
) -> None:
    METRICS[name](metric_inputs([METRICS[name].unit_kinds[-1]], BATCHES))
    shown = capsys.readouterr().err
    total = {"layerwise_ppl": 9, "bonsai": 8}.get(name, len(BATCHES))
    assert f"Measuring {name}:   0%|" in shown
    assert f"| 0/{total} [" in shown


def test_a_disk_that_is_full_does_not_end_it(recwarn: pytest.WarningsRecorder) -> None:
    def refuse(_: Any) -> None:
        raise UserError("no space")

    total = torch.zeros(())
    for part in Measurement(save=refuse).parts("a", 4, {"total": total}, unit="part"):
        total += part
    assert total == 6
    (warned,) = [str(warning.message) for warning in recwarn]
    assert warned == "the measurement goes on, unsaved: no space"


def test_a_part_that_breaks_off_is_not_kept() -> None:
    states: list[dict[str, Any]] = []
    total = torch.zeros(())

    def measure(measurement: Measurement, broken: int | None) -> None:
        for part in measurement.parts("a", 4, {"total": total}, unit="part"):
            total.add_(part + 1)
            if part == broken:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(Measurement(save=states.append), 2)
    assert total == 6, "of which 3 is the part that broke off"
    measure(Measurement(states[-1]), None)
    assert total == 10
