"""Every file in configs/experiments/ is an experiment that the program takes."""

from pathlib import Path

import pytest

from pgprune_lightning.comparison import load_experiment
from pgprune_lightning.comparison.trial import trials_of
from pgprune_lightning.errors import UserError
from tests.paper_experiments import PAPER
from tests.parsed_trials import parsed_trial

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
        parsed_trial(experiment, setting, method)
    assert experiment.title
    assert len(experiment.methods) > 1
    assert f"configs/experiments/{name}" in path.read_text(), "the file says how it is run"


def test_the_quickstarts_experiment_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model and texts are installed packages; what is not may be left out."""
    monkeypatch.delenv("PGPRUNE_DATA", raising=False)
    experiment = load_experiment(CONFIGS / "experiments" / "quickstart.yaml")
    for setting, method in experiment.pairs():
        config = parsed_trial(experiment, setting, method)
        texts = [config.data.train, config.data.validation, *config.data.test]
        needed = [config.model.base_model, *(text.path for text in texts if not text.optional)]
        assert len(needed) > 3
        assert all(place.startswith("package:") for place in needed)


def test_the_tiny_experiment_names_the_variable_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PGPRUNE_DATA", raising=False)
    experiment = load_experiment(CONFIGS / "experiments" / "tiny.yaml")
    with pytest.raises(UserError, match=r"PGPRUNE_DATA.* that is not set; set it"):
        trials_of(experiment, tmp_path)
