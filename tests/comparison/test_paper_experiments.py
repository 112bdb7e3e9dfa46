"""Every table and figure of the paper has an experiment file; it asks for what the paper ran."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pgprune_lightning.comparison import Experiment, load_experiment
from pgprune_lightning.comparison.experiment import FinetuneOptions, LatencyOptions
from pgprune_lightning.recovery import ALPACA, LoraOptions
from pgprune_lightning.training.budget_schedule import Progressive
from tests.paper_experiments import EPOCH, HUB_IDS, PAPER, TASKS, Expected
from tests.parsed_trials import parsed_trial

EXPERIMENTS = Path(__file__).resolve().parents[2] / "configs" / "experiments"
FILES = sorted(PAPER)

Options = dict[str, Any]


def load(name: str) -> Experiment:
    """Read the experiment file of a table or figure."""
    return load_experiment(EXPERIMENTS / f"{name}.yaml")


def leaves(options: Any, prefix: str = "") -> Options:
    """Every option by its dotted name."""
    if not isinstance(options, dict):
        return {prefix: options}
    found: Options = {}
    for name, value in options.items():
        found |= leaves(value, f"{prefix}.{name}" if prefix else name)
    return found


def trial_options(experiment: Experiment, setting: str, method: str) -> Options:
    """What a trial changes of the recipe."""
    changed: Options = {}
    for layer in experiment.layers(setting, method):
        changed |= leaves(layer)
    return changed


def expected_options(expected: Expected, model: str, ratio: float, method: str) -> Options:
    """What the paper changes of the recipe for a trial."""
    step_size = {"model.update.lr": 0.006} if model == "LLaMA-3-8B" else {}
    trial = {"model.base_model": HUB_IDS[model], "model.keep_ratio": ratio}
    return {**expected.options, **trial, **step_size, **expected.methods[method]}


def expected_steps(options: Options) -> int:
    """One epoch, or a third of one for each ratio that Random-Progressive passes."""
    names = ("start", "step", "steps_per_stage")
    given = {name: options.get(f"model.budget.progressive.{name}") for name in names}
    if None in given.values():
        return EPOCH
    ratios = Progressive(**given).ratios(options["model.keep_ratio"])  # type: ignore[arg-type]
    return len(ratios) * EPOCH // 3


def test_every_table_and_figure_has_its_file() -> None:
    found = {path.stem for path in EXPERIMENTS.glob("*.yaml")}
    assert found == PAPER.keys() | {"quickstart", "tiny"}


@pytest.mark.parametrize("name", FILES)
def test_a_file_asks_for_what_the_paper_ran(name: str) -> None:
    experiment, expected = load(name), PAPER[name]
    assert [path.stem for path in experiment.recipe] == [expected.recipe]
    assert experiment.seeds == expected.seeds
    assert experiment.zero_shot == (TASKS if expected.zero_shot else ())
    assert experiment.evaluation_lengths == (128, 2048)
    assert experiment.evaluation_tokens is None
    assert list(experiment.methods) == list(expected.methods)

    columns = [(model, ratio) for model in expected.models for ratio in expected.ratios]
    for setting, (model, ratio) in zip(experiment.settings, columns, strict=True):
        for method in experiment.methods:
            options = trial_options(experiment, setting, method)
            steps = options.pop("trainer.max_steps", EPOCH)
            assert options == expected_options(expected, model, ratio, method)
            if experiment.methods[method].kind == "learned":
                assert steps == expected_steps(options), (setting, method)


@pytest.mark.parametrize("name", FILES)
def test_what_is_timed_and_tuned(name: str) -> None:
    """Tables A2 (4 sequences of 2,048 tokens), A3 and A4 (A.6); the dense rows stay dense."""
    experiment = load(name)
    shape = LatencyOptions(batch_size=4, sequence_length=2048, repetitions=10)
    assert experiment.latency == (shape if name == "table_a2" else None)
    tuned = {method for method in experiment.methods if experiment.finetune_of(method)}
    expected = set(experiment.methods) - {"dense"} if name in ("table_a3", "table_a4") else set()
    assert tuned == expected
    if experiment.finetune is not None:
        lora = LoraOptions(rank=16, alpha=10, num_records=4000, max_length=1024)
        assert experiment.finetune == FinetuneOptions(ALPACA, lora)


@pytest.mark.parametrize("name", FILES)
def test_a_label_says_which_model_and_ratio_it_stands_for(name: str) -> None:
    expected = PAPER[name]
    labels = list(load(name).settings)
    if len(expected.ratios) > 1:
        models = [f"{model} " if len(expected.models) > 1 else "" for model in expected.models]
        assert labels == [f"{model}{ratio}" for model in models for ratio in expected.ratios]
    else:
        assert labels == (["7B", "13B"] if len(expected.models) > 1 else ["all"])


@pytest.mark.parametrize("name", FILES)
def test_the_kind_of_a_row_follows_from_its_name(name: str) -> None:
    kinds = {"dense": "dense", "slicegpt": "slicegpt"}
    metrics = dict.fromkeys(("llm_pruner", "bonsai", "wanda_sp", "layerwise_ppl"), "metric")
    for method, row in load(name).methods.items():
        assert row.kind == (kinds | metrics).get(method, "learned"), method


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_it_shows_and_how_it_is_run(name: str) -> None:
    label = name.replace("table_", "Table ").replace("figure_", "Fig. ").replace(" a", " A")
    text = (EXPERIMENTS / f"{name}.yaml").read_text()
    assert text.startswith(f"# {label}: ")
    command = f"compare --config configs/experiments/{name}.yaml --output runs/{name}\n"
    assert command in text
    experiment = load(name)
    assert re.match(rf"{label}\b", experiment.title)
    assert experiment.pictures


@pytest.fixture(scope="module")
def checked_forms() -> set[str]:
    """Trials that the parser has taken, but for their model and ratio."""
    return set()


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_fit_takes_the_options_of_every_trial(checked_forms: set[str], name: str) -> None:
    """Trials that differ only in the model's name and the ratio are parsed once for all of them."""
    experiment = load(name)
    for setting, method in experiment.pairs():
        options = trial_options(experiment, setting, method)
        alike = {
            key: type(options.pop(key)).__name__ for key in ("model.base_model", "model.keep_ratio")
        }
        recipe = [str(path) for path in experiment.recipe]
        form = json.dumps([recipe, alike, options], sort_keys=True)
        if form not in checked_forms:
            parsed_trial(experiment, setting, method)
            checked_forms.add(form)


def test_the_estimators_are_those_that_the_tables_compare() -> None:
    def estimator(name: str, method: str) -> tuple[str, Options, int]:
        experiment = load(name)
        model = parsed_trial(experiment, next(iter(experiment.settings)), method).model
        chosen = model.estimator.as_dict()
        return (
            chosen["class_path"].rpartition(".")[2],
            chosen["init_args"],
            model.objective.num_mask_samples,
        )

    common = {"score_scale": "variance", "normalization": "samples"}
    average = common | {"start": "zero", "order": "update_then_use"}
    found = {method: estimator("table_a9", method) for method in ("T 3", "T 7", "N_s 4")} | {
        method: estimator("table_a8", method) for method in PAPER["table_a8"].methods
    }
    assert found == {
        "T 3": ("MovingAverageBaseline", average | {"window": 3}, 2),
        "T 7": ("MovingAverageBaseline", average | {"window": 7}, 2),
        "N_s 4": ("MovingAverageBaseline", average | {"window": 5}, 4),
        "with_baseline": ("MovingAverageBaseline", average | {"window": 5}, 2),
        "without_baseline": ("PlainReinforce", common, 2),
    }


HOURS = {"7B": 1.76, "8B": 1.76, "13B": 2.72}
"""Of one epoch with two masks at 128 tokens on an A100, by the model's size (paper, A.5)."""


@pytest.mark.parametrize("name", FILES)
def test_the_readme_counts_the_runs_and_hours(name: str) -> None:
    experiment, expected = load(name), PAPER[name]
    learned = [method for method, row in experiment.methods.items() if row.kind == "learned"]
    runs = [
        (model, expected_options(expected, model, ratio, method))
        for model in expected.models
        for ratio in expected.ratios
        for method in learned
        for _ in experiment.seeds
    ]
    length = 2048 if expected.recipe == "calibration_128x2048" else 128
    hours = sum(
        HOURS[model.rpartition("-")[2]]
        * (expected_steps(options) / EPOCH)
        * (options.get("model.objective.num_mask_samples", 2) / 2)
        * (length / 128)
        for model, options in runs
    )
    table = (EXPERIMENTS / "README.md").read_text()
    (row,) = re.findall(rf"^\| `{name}\.yaml` \|.*\| (\d+) \| ([\d,.]+) \|$", table, re.MULTILINE)
    assert (int(row[0]), row[1]) == (len(runs), f"{hours:,.0f}")
