"""Every file in configs/ is a complete recipe that the command line takes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pgprune_lightning.cli import main
from pgprune_lightning.initialization import Initialization
from pgprune_lightning.training.budget_schedule import Progressive

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml"))
OVERLAYS = sorted(path.name for path in CONFIGS.glob("overlays/*.yaml"))

PAPER = {
    "llama2_7b": ("meta-llama/Llama-2-7b-hf", 0.002),
    "llama2_13b": ("meta-llama/Llama-2-13b-hf", 0.002),
    "llama3_8b": ("meta-llama/Meta-Llama-3-8B", 0.006),
    "mistral_7b_instruct": ("mistralai/Mistral-7B-Instruct-v0.3", 0.002),
    "vicuna_7b": ("lmsys/vicuna-7b-v1.5", 0.002),
}
"""Model and step size; all else is the same for all of them (paper, Sect. 4.1)."""


def parse(capsys: pytest.CaptureFixture[str], *names: str) -> dict[str, Any]:
    """What the command line makes of config files, with every default; nothing is built."""
    files = [argument for name in names for argument in ("--config", str(CONFIGS / name))]
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["fit", *files, "--print_config"])
    printed = capsys.readouterr()
    assert end.value.code == 0, printed.err
    config: dict[str, Any] = yaml.safe_load(printed.out)
    return config


def test_the_recipes_are_these() -> None:
    papers = [f"{model}_keep70_heads_channels.yaml" for model in PAPER]
    assert sorted(RECIPES) == sorted(["quickstart.yaml", *papers])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_complete_and_taken(capsys: pytest.CaptureFixture[str], recipe: str) -> None:
    config = parse(capsys, recipe)
    assert config["run_dir"] == f"runs/{Path(recipe).stem}"
    assert config["model"]["base_model"]
    assert config["data"]["train"]["path"]
    assert config["data"]["validation"]["label"] != config["data"]["test"][0]["label"]
    first_lines = (CONFIGS / recipe).read_text()
    assert f"configs/{recipe}" in first_lines or recipe == "quickstart.yaml"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_changes_only_its_own_options(
    capsys: pytest.CaptureFixture[str], overlay: str
) -> None:
    changed = yaml.safe_load((CONFIGS / "overlays" / overlay).read_text()).keys()
    plain = parse(capsys, "quickstart.yaml")
    with_overlay = parse(capsys, "quickstart.yaml", f"overlays/{overlay}")
    assert {name for name in plain if plain[name] != with_overlay[name]} == changed


DEPARTURES = {
    "authors_code": {
        "model.budget.scope": "per_kind",
        "model.update.lr_schedule": "cosine",
        "model.estimator.init_args": {
            "window": 5,
            "start": "first_loss",
            "order": "update_then_use",
            "score_scale": "standard_deviation",
            "normalization": "samples_minus_one",
        },
        "model.initialization.shift_to_budget": True,
    },
    "paper": {
        "model.budget.scope": "units",
        "model.update.lr_schedule": "constant",
        "model.estimator.init_args": {
            "window": 5,
            "start": "zero",
            "order": "update_then_use",
            "score_scale": "variance",
            "normalization": "samples",
        },
        "model.initialization.shift_to_budget": False,
    },
}
"""Where the authors' published code and their paper differ, as options."""


@pytest.mark.parametrize("recipe", DEPARTURES)
def test_a_reading_of_the_method_is_the_papers_but_for_its_departures(
    capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    config = parse(capsys, f"recipes/{recipe}.yaml")
    expected = DEPARTURES[recipe]
    assert {name: _at(config, name) for name in expected} == expected
    assert config["run_dir"] == f"runs/{recipe}"
    assert f"configs/recipes/{recipe}.yaml" in (CONFIGS / "recipes" / f"{recipe}.yaml").read_text()
    plain = parse(capsys, "llama2_7b_keep70_heads_channels.yaml")
    assert config["data"] == plain["data"]
    assert config["trainer"] == plain["trainer"]
    assert config["model"]["base_model"] == plain["model"]["base_model"]


APPENDICES = {
    "random_progressive": {  # A.12
        "model.keep_ratio": 0.5,
        "model.budget.progressive.start": 0.95,
        "model.budget.progressive.step": 0.05,
        "model.budget.progressive.steps_per_stage": 120000 // 8 // 3,
        "model.initialization.metric": "random",
        "model.initialization.shift_to_budget": True,
        "model.initialization.num_blocks": 128,  # the default: nothing is measured
        "trainer.max_steps": 10 * 120000 // 8 // 3,
    },
    "calibration_128x2048": {  # A.15
        "data.train.num_blocks": 128,
        "data.block_length": 2048,
        "model.initialization.num_blocks": 128,
    },
}
"""What the experiments of an appendix change of the paper's recipe: this and nothing else."""


SMALL_MODELS = {"quickstart_forward_only", "smollm2_c4", "tiny_stories"}
"""Recipes for models that the paper did not prune."""

WAYS_TO_LEARN = {"fast", "forward_only"}
"""Recipes that are laid over that of a model."""


def test_every_recipe_is_held_against_the_paper() -> None:
    found = {path.stem for path in CONFIGS.glob("recipes/*.yaml")}
    assert found == DEPARTURES.keys() | APPENDICES.keys() | SMALL_MODELS | WAYS_TO_LEARN


@pytest.mark.parametrize("recipe", sorted(WAYS_TO_LEARN))
def test_a_way_to_learn_suits_every_model(capsys: pytest.CaptureFixture[str], recipe: str) -> None:
    text = (CONFIGS / "recipes" / f"{recipe}.yaml").read_text()
    assert f"--config configs/recipes/{recipe}.yaml" in text
    plain = parse(capsys, "quickstart.yaml")
    config = parse(capsys, "quickstart.yaml", f"recipes/{recipe}.yaml")
    theirs = {"base_model", "keep_ratio", "execution"}
    assert {name: config["model"][name] for name in theirs} == {
        name: plain["model"][name] for name in theirs
    }
    assert config["model"]["units"]["kinds"] == plain["model"]["units"]["kinds"]
    assert config["data"] == plain["data"] | {"batch_size": config["data"]["batch_size"]}


def test_forward_only_learns_as_fast_does_without_a_backward_pass(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fast = parse(capsys, "quickstart.yaml", "recipes/fast.yaml")
    forward = parse(capsys, "quickstart.yaml", "recipes/forward_only.yaml")
    assert Initialization(**fast["model"].pop("initialization")).needs_gradients
    assert not Initialization(**forward["model"].pop("initialization")).needs_gradients
    groups = [(fast["model"].pop(name), forward["model"].pop(name)) for name in ("units", "update")]
    assert fast["model"] == forward["model"]
    changed = {name for old, new in groups for name in old if old[name] != new[name]}
    assert changed == {"protected_layers", "lr"}
    assert fast["data"] == forward["data"]


@pytest.mark.parametrize("recipe", sorted(SMALL_MODELS))
def test_a_small_models_recipe_is_complete(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    recipe: str,
) -> None:
    monkeypatch.setenv("PGPRUNE_DATA", str(tmp_path))
    config = parse(capsys, f"recipes/{recipe}.yaml")
    assert config["run_dir"] == f"runs/{recipe}"
    # The text that the best mask is chosen on is not the one that the result is reported on.
    texts = [config["data"]["validation"], *config["data"]["test"]]
    assert len({(text["path"], text["split"], str(text["part"])) for text in texts}) == len(texts)
    assert f"configs/recipes/{recipe}.yaml" in (CONFIGS / "recipes" / f"{recipe}.yaml").read_text()


@pytest.mark.parametrize("recipe", APPENDICES)
def test_an_appendix_changes_only_what_it_says(
    capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    paper = _leaves(parse(capsys, "recipes/paper.yaml"))
    config = _leaves(parse(capsys, f"recipes/{recipe}.yaml"))
    assert config.pop("run_dir") == f"runs/{recipe}"
    assert {name: value for name, value in config.items() if paper.get(name) != value} == (
        APPENDICES[recipe]
    )
    assert {name for name, value in paper.items() if value and name not in config} == {"run_dir"}
    assert f"configs/recipes/{recipe}.yaml" in (CONFIGS / "recipes" / f"{recipe}.yaml").read_text()


def test_the_stages_of_random_progressive_are_the_papers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = parse(capsys, "recipes/random_progressive.yaml")
    progressive = Progressive(**config["model"]["budget"]["progressive"])
    ratios = progressive.ratios(config["model"]["keep_ratio"])
    assert ratios == [(100 - percent) / 100 for percent in range(5, 51, 5)]
    assert config["trainer"]["max_steps"] == len(ratios) * progressive.steps_per_stage


def test_wandb_is_off_until_its_overlay_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(capsys, "quickstart.yaml")["wandb"]["mode"] == "off"
    with_overlay = parse(capsys, "quickstart.yaml", "overlays/wandb.yaml")
    assert with_overlay["wandb"]["mode"] == "online"


@pytest.mark.parametrize("model", PAPER)
def test_the_models_have_the_papers_hyperparameters(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    config = parse(capsys, f"{model}_keep70_heads_channels.yaml")
    base_model, lr = PAPER[model]
    expected = {
        "model.base_model": base_model,
        "model.update.lr": lr,
        "model.keep_ratio": 0.7,
        "model.units.kinds": ["kv_group", "mlp_channel"],
        "model.objective.num_mask_samples": 2,
        "model.estimator.init_args.window": 5,
        "model.budget.probability_bounds": [0.0, 1.0],
        "model.initialization.metric": "wanda_sp",
        "model.initialization.projection": "sigmoid_norm",
        "model.execution.dtype": "bfloat16",
        "data.train.path": "allenai/c4",
        "data.train.num_blocks": 120000,
        "data.block_length": 128,
        "data.evaluation_block_length": 128,
        "data.batch_size": 8,
        "data.validation.name": "wikitext-2-raw-v1",
        "data.validation.join": "blank_line",
        "trainer.max_steps": 120000 // 8,
        "wandb.mode": "online",
    }
    assert {name: _at(config, name) for name in expected} == expected
    assert [source["split"] for source in config["data"]["test"]] == ["test"]


def _leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every option by its dotted name."""
    if not isinstance(config, dict):
        return {prefix: config}
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= _leaves(value, f"{prefix}.{key}" if prefix else key)
    return leaves


def _at(config: Any, name: str) -> Any:
    for key in name.split("."):
        config = config[key]
    return config
