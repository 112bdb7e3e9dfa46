from typing import Any

import pytest
from lightning.pytorch.loggers import WandbLogger

from callbacks import PolicyPictures
from pgprune_lightning.errors import UserError
from tests.tiny_runs import TinyRun


class Recorder(WandbLogger):
    """Keeps what would go to W&B."""

    def __init__(self, folder: str) -> None:
        super().__init__(save_dir=folder, offline=True)
        self.logged: dict[int, dict[str, Any]] = {}

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        pictures = {name: value for name, value in metrics.items() if name.startswith("pictures/")}
        if pictures:
            assert step is not None
            assert step not in self.logged
            self.logged[step] = pictures


def drawn_at(tiny_run: TinyRun, every: int, **options: Any) -> dict[int, dict[str, Any]]:
    recorder = Recorder(str(tiny_run.folder))
    tiny_run.fit([PolicyPictures(every)], logger=recorder, **options)
    return recorder.logged


def test_pictures_are_those_of_the_policy_at_its_step(tiny_run: TinyRun) -> None:
    logged = drawn_at(tiny_run, 1)
    assert list(logged) == [0, 2, 4]
    names = {
        f"pictures/{what}/{kind}"
        for what in ("keep_probabilities", "sparsity_by_layer")
        for kind in ("kv_group", "mlp_channel")
    }
    pages = {step: {name: html.html for name, html in logged[step].items()} for step in logged}
    for step in (0, 2, 4):
        assert pages[step].keys() == names
    heat_map = "pictures/keep_probabilities/kv_group"
    assert "<svg" in pages[0][heat_map]
    assert pages[0][heat_map] != pages[4][heat_map]
    assert "untrained" in pages[4]["pictures/sparsity_by_layer/mlp_channel"]


@pytest.mark.parametrize(("every", "steps"), [(3, [0, 4]), (100, [0, 4]), (0, [])])
def test_pictures_are_not_drawn_too_often(tiny_run: TinyRun, every: int, steps: list[int]) -> None:
    assert list(drawn_at(tiny_run, every)) == steps


def test_the_end_is_drawn_where_no_validation_is(tiny_run: TinyRun) -> None:
    assert list(drawn_at(tiny_run, 100, max_steps=3)) == [0, 3]


def test_a_negative_distance_is_refused() -> None:
    with pytest.raises(UserError, match="0 or more steps"):
        PolicyPictures(-1)
