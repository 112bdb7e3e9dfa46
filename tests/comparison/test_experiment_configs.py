"""Every file in configs/experiments/ is an experiment that the program takes."""

from pathlib import Path

import pytest

from pgprune_lightning.comparison import load_experiment
from tests.paper_experiments import PAPER
from tests.parsed_cells import parsed_cell

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Those of the paper have tests of their own, in test_paper_experiments.py.
EXPERIMENTS = sorted(
    str(path.relative_to(CONFIGS / "experiments"))
    for path in CONFIGS.glob("experiments/**/*.yaml")
    if path.parent.name != "experiments" or path.stem not in PAPER
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_complete_and_taken(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGPRUNE_DATA", str(tmp_path))
    path = CONFIGS / "experiments" / name
    experiment = load_experiment(path)
    for setting, method in experiment.pairs():
        parsed_cell(experiment, setting, method)
    assert experiment.title
    assert len(experiment.methods) > 1
    assert f"configs/experiments/{name}" in path.read_text(), "the file says how it is run"
