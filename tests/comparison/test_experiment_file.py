import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgprune_lightning.comparison import Method, Picture, load_experiment
from pgprune_lightning.comparison.experiment import FinetuneOptions, LatencyOptions
from pgprune_lightning.comparison.trial import trials_of
from pgprune_lightning.errors import UserError
from pgprune_lightning.recovery import LoraOptions

WriteFile = Callable[..., Path]


def test_everything_in_a_file_is_read(experiment_file: WriteFile) -> None:
    path = experiment_file(
        options={"trainer.max_steps": 3, "model": {"update": {"lr": 0.1}}},
        seeds=[0, 7],
        evaluation_tokens=64,
        zero_shot=["piqa"],
        zero_shot_folder="tasks",
        zero_shot_limit=20,
        latency={"batch_size": 2},
        finetune={"records": "a.jsonl", "rank": 8, "lr": "2e-4", "target_modules": ["up_proj"]},
        picture=[{"kind": "lines", "value": "seconds", "x_label": "keep ratio"}],
    )
    experiment = load_experiment(path)
    assert experiment.title == "Two masks"
    assert experiment.recipe == (path.parent / "config.yaml",)
    assert experiment.options == {"trainer": {"max_steps": 3}, "model": {"update": {"lr": 0.1}}}
    assert experiment.settings == {
        "0.8": {"model": {"keep_ratio": 0.8}},
        "0.6": {"model": {"keep_ratio": 0.6}},
    }
    assert list(experiment.methods) == ["dense", "wanda_sp", "learned"]
    assert experiment.methods["learned"] == Method("learned", {})
    assert experiment.seeds == (0, 7)
    assert experiment.evaluation_lengths == (16, 48)
    assert experiment.evaluation_tokens == 64
    assert experiment.zero_shot == ("piqa",)
    assert (experiment.zero_shot_folder, experiment.zero_shot_limit) == ("tasks", 20)
    assert experiment.latency == LatencyOptions(batch_size=2, sequence_length=2048, repetitions=10)
    lora = LoraOptions(rank=8, lr=2e-4, target_modules=("up_proj",))
    assert experiment.finetune == FinetuneOptions("a.jsonl", lora)
    assert experiment.pictures == (Picture("lines", "seconds", "keep ratio", None),)


def test_what_a_file_leaves_out(experiment_file: WriteFile) -> None:
    path = experiment_file(settings=None, evaluation_lengths=[128, 2048])
    experiment = load_experiment(path)
    assert experiment.settings == {"all": {}}
    assert experiment.seeds == (0,)
    assert experiment.options == {}
    assert experiment.evaluation_tokens is None
    assert (experiment.zero_shot, experiment.pictures) == ((), ())
    assert (experiment.zero_shot_folder, experiment.zero_shot_limit) == (None, None)
    assert (experiment.latency, experiment.finetune) == (None, None)


def test_tasks_come_from_a_folder_where_it_exists(
    experiment_file: WriteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(experiment_file(zero_shot_folder="${TASK_DATA}/tasks"))
    monkeypatch.delenv("TASK_DATA", raising=False)
    assert experiment.local_zero_shot_folder is None
    monkeypatch.setenv("TASK_DATA", str(tmp_path))
    assert experiment.local_zero_shot_folder is None
    (tmp_path / "tasks").mkdir()
    assert experiment.local_zero_shot_folder == tmp_path / "tasks"


def test_pruned_rows_are_tuned_unless_they_say_otherwise(experiment_file: WriteFile) -> None:
    methods = {
        "dense": {"kind": "dense"},
        "dense_tuned": {"kind": "dense", "finetune": True},
        "learned": {"kind": "learned"},
        "before": {"kind": "learned", "finetune": False},
        "slicegpt": {"kind": "slicegpt"},
    }
    experiment = load_experiment(experiment_file(methods=methods, finetune={}))
    tuned = {name for name in methods if experiment.finetune_of(name) is not None}
    assert tuned == {"dense_tuned", "learned", "slicegpt"}
    assert experiment.finetune_of("learned") == FinetuneOptions("tatsu-lab/alpaca", LoraOptions())


def test_settings_may_be_numbers(experiment_file: WriteFile) -> None:
    path = experiment_file(settings={0.9: {"model.keep_ratio": 0.9}})
    assert list(load_experiment(path).settings) == ["0.9"]


def test_some_settings_are_chosen(experiment_file: WriteFile) -> None:
    path = experiment_file(settings={"0.9": {}, "0.8": {"model.update.lr": 1.0}, "0.7": {}})
    experiment = load_experiment(path, settings=["0.7", "0.8"])
    assert experiment.settings == {"0.8": {"model": {"update": {"lr": 1.0}}}, "0.7": {}}
    for wrong in (["0.6"], []):
        with pytest.raises(UserError, match=r"settings: it has no .*give some of 0\.9, 0\.8, 0\.7"):
            load_experiment(path, settings=wrong)


def test_the_command_line_overrides_options_and_seeds(experiment_file: WriteFile) -> None:
    path = experiment_file(options={"trainer.max_steps": 9, "trainer.log_every_n_steps": 5})
    experiment = load_experiment(path, options={"trainer.max_steps": 2}, seeds=[3])
    assert experiment.options == {"trainer": {"max_steps": 2, "log_every_n_steps": 5}}
    assert experiment.seeds == (3,)


def test_layers_come_in_the_order_in_which_later_ones_win(experiment_file: WriteFile) -> None:
    methods = {"learned": {"kind": "learned", "options": {"model.update.lr": 3}}}
    path = experiment_file(options={"model.update.lr": 1}, methods=methods)
    layers = load_experiment(path).layers("0.8", "learned")
    assert layers == [
        {"model": {"update": {"lr": 1}}},
        {"model": {"keep_ratio": 0.8}},
        {"model": {"update": {"lr": 3}}},
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metods": {}}, "unknown key metods; allowed are title, recipe"),
        ({"title": ""}, "title: missing"),
        ({"methods": {}}, "methods: missing"),
        ({"methods": [1]}, "methods: must be a mapping"),
        ({"methods": {"a": {"kind": "wanda"}}}, "methods.a.kind: must be one of dense, metric"),
        ({"methods": {"a": {"kind": "dense", "x": 1}}}, "methods.a: unknown key x"),
        ({"methods": {"a/b": {"kind": "dense"}}}, "'a/b' becomes the name of a folder"),
        ({"methods": {"..": {"kind": "dense"}}}, "'..' becomes the name of a folder"),
        (
            {"methods": {"a b": {"kind": "dense"}, "A_b": {"kind": "dense"}}},
            "'a b' and 'A_b' would share a folder",
        ),
        ({"settings": {"x": 3}}, "settings.x: must be a mapping"),
        ({"recipe": "missing.yaml"}, "recipe: there is no file .*missing.yaml"),
        ({"recipe": 3}, "recipe: must be a list of texts"),
        ({"seeds": []}, "seeds: must be a list of different whole numbers"),
        ({"seeds": [0, 0]}, "seeds: must be a list of different"),
        ({"evaluation_lengths": [1]}, "evaluation_lengths: .* at least 2"),
        ({"evaluation_tokens": 47}, "evaluation_tokens: .* at least 48"),
        ({"zero_shot": "piqa"}, "zero_shot: must be a list"),
        ({"zero_shot": ["squad"]}, "zero_shot: must be one of piqa, .*; given 'squad'"),
        ({"zero_shot_folder": 3}, "zero_shot_folder: must be a text"),
        ({"finetune": {"ranks": 1}}, "allowed are records, .* Did you mean rank[?]"),
        ({"finetune": {"rank": "much"}}, "finetune.rank: must be a whole number; given much"),
        (
            {"methods": {"a": {"kind": "dense", "finetune": 1.5}}},
            "methods.a.finetune: must be true",
        ),
        (
            {"methods": {"a": {"kind": "metric", "finetune": True}}},
            "methods.a.finetune: the file does not say how",
        ),
        ({"latency": {"batch": 1}}, "latency: unknown key batch; allowed are batch_size, "),
        ({"latency": {"repetitions": 0}}, "latency.repetitions: .* at least 1"),
        ({"zero_shot_limit": 1}, "zero_shot_limit: .* at least 2"),
        ({"picture": {"kind": "pie"}}, "picture.kind: must be one of bars"),
        ({"picture": {"kind": "bars", "value": "perplexity_8"}}, "picture.value: must be one of"),
        ({"picture": {"kind": "sparsity", "method": "dense"}}, "picture.method: must be one of"),
        (
            {"options": {"model.update.lr": 1, "model": {"update": {"lr": 2}}}},
            "options: model.update.lr is given twice",
        ),
        (
            {"options": {"model": 1, "model.update.lr": 2}},
            "options: model.update.lr is given, and model",
        ),
        ({"options": {"model..lr": 1}}, "options: 'model..lr' is no name"),
    ],
)
def test_a_mistake_in_the_file_is_named(
    experiment_file: WriteFile, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=r"experiment\.yaml: ") as raised:
        load_experiment(experiment_file(**changes))
    assert re.search(message, str(raised.value)), raised.value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.update.lrr": 1}, r"no option model.update.lrr. Did you mean model.update.lr\?"),
        ({"model.update.lr": "much"}, "model.update.lr: must be a number; given much"),
        ({"model.initialization.metric": "wanda"}, "model.initialization.metric:.*wanda"),
        ({"run_dir": "x"}, "run_dir: the comparison chooses it"),
        ({"seed_everything": 1}, "seed_everything: the comparison chooses it"),
        ({"data.test": []}, "data.test: the masks are compared on the first text"),
        ({"trainer.devices": 2}, "trainer.devices: a comparison runs on one device"),
        ({"trainer.precision": "bf16-true"}, "trainer.precision: .*32-true"),
    ],
)
def test_a_mistake_in_the_options_of_the_last_trial_is_named(
    experiment_file: WriteFile, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    methods = {"dense": {"kind": "dense"}, "last": {"kind": "metric", "options": options}}
    experiment = load_experiment(experiment_file(methods=methods))
    with pytest.raises(UserError) as raised:
        trials_of(experiment, tmp_path)
    text = " ".join(str(raised.value).split())
    assert text.startswith("settings.0.8, methods.last: ")
    assert re.search(message, text), text


def test_a_method_given_twice_is_no_silent_loss(experiment_file: WriteFile) -> None:
    path = experiment_file()
    path.write_text(path.read_text() + "methods:\n  dense: {kind: dense}\n")
    with pytest.raises(UserError, match="'methods' is given twice"):
        load_experiment(path)


def test_a_file_that_is_no_yaml(experiment_file: WriteFile) -> None:
    path = experiment_file()
    path.write_text("title: [")
    with pytest.raises(UserError, match="is no YAML"):
        load_experiment(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_experiment(path.with_name("missing.yaml"))
