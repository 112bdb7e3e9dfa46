"""What a wrong option is answered with, as a newcomer would mistype it: what to write instead."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import pytest

from pgprune_lightning.commands.bench import bench_parser
from pgprune_lightning.commands.compare import compare_parser
from pgprune_lightning.commands.evaluate import evaluate_parser
from pgprune_lightning.commands.export_options import export_parser
from pgprune_lightning.commands.finetune import finetune_parser
from pgprune_lightning.commands.report import report_parser
from pgprune_lightning.errors import OptionError, UserError
from pgprune_lightning.run_options import run_parser
from research.study import study_parser
from research.variance import variance_parser

KINDS = "kv_group, mlp_channel, attention, mlp, layer"
POLICIES = "FreeLogits, FreeProbabilities, PGPEPolicy, StructuredLogits"

OF_FIT = {
    # Options that there are not.
    "--model.keep_ration 0.5": "no option --model.keep_ration. Did you mean --model.keep_ratio?",
    "--model.keep-ratio 0.5": "no option --model.keep-ratio. Did you mean --model.keep_ratio?",
    "--keep_ratio 0.5": "there is no option --keep_ratio. Did you mean --model.keep_ratio?",
    "--model.lr 0.1": "there is no option --model.lr. Did you mean --model.update.lr?",
    "--model.dtype float32": "Did you mean --model.execution.dtype?",
    "--config '{model: {protected_layers: []}}'": "Did you mean model.units.protected_layers?",
    "--model.budget per_kind": "model.budget: is a group of options, or a YAML file of them; given "
    "per_kind. The options: model.budget.scope, ",
    "--lr 0.1": "there is no option --lr. Did you mean --model.update.lr?",
    "--trainer.max_step 5": "no option --trainer.max_step. Did you mean --trainer.max_steps?",
    "--checkpoint.every 5": "Did you mean --checkpoint.every_n_train_steps?",
    "--data.train.pth x": "there is no option --data.train.pth. Did you mean --data.train.path?",
    "extra": "extra: belongs to no option. Options begin with --.",
    "--resume": "--resume: needs a value.",
    "--config '{modl: {lr: 1}}'": "there is no option modl.lr. Did you mean model.update.lr?",
    "--config '{data: {train: {pth: x}}}'": "Did you mean data.train.path?",
    "--config '[1, 2]'": "a config must be a mapping of options to values; given [1, 2].",
    "--config ''": "a config must be a mapping of options to values; it is empty.",
    "--model.seed 3": "model.seed: is set by seed_everything; give that.",
    "--trainer.default_root_dir x": "trainer.default_root_dir: is set by run_dir;",
    # Values that an option does not take.
    "--model.budget.scope per_head": "model.budget.scope: must be one of per_kind, per_layer, "
    "units, parameters; given per_head. Did you mean per_kind?",
    "--model.units.kinds layer": f"model.units.kinds: must be a list of some of {KINDS}, such as "
    "[kv_group, mlp_channel]; given layer. Write [layer].",
    "--model.units.protected_layers 0,1": "must be a list of whole numbers, such as [1]; given "
    "0,1. Write [0, 1].",
    "--model.update.lr abc": "model.update.lr: must be a number; given abc.",
    "--model.update.lr_factors 0.1": f"must be a mapping of some of {KINDS} to values, such as "
    "{kv_group: 0.5}, or null; given 0.1.",
    "--model.update.lr_factors {mlp:1}": "YAML wants a space behind a colon.",
    "--model.budget.layer_keep_ratios 0.5": "must be a list of 2 numbers, such as [0.0, 1.0]; "
    "given 0.5.",
    "--model.budget.fill maybe": "model.budget.fill: must be true or false; given maybe.",
    "--model.initialization.metric wanda": "given wanda. Did you mean wanda_sp?",
    "--model.initialization magnitude": "model.initialization: is a group of options, or a YAML "
    "file of them; given magnitude. The options: model.initialization.metric, ",
    "--config '{checkpoint: 5}'": "checkpoint: is a group of options, or a YAML file of them; "
    "given 5. The options: checkpoint.every_n_train_steps, checkpoint.keep.",
    "--data.train text.txt": "data.train: is a group of options, or a YAML file of them; given "
    "text.txt. Did you mean --data.train.path text.txt? The options: data.train.path, ",
    "--data.validation ./my/text.jsonl": "Did you mean --data.validation.path ./my/text.jsonl?",
    "--model.budget.progressive true": "model.budget.progressive: must be a mapping of its options "
    "(start, step, steps_per_stage), or null; given true.",
    "--wandb.mode on": "wandb.mode: must be one of off, online, offline; given on.",
    "--config '{wandb: {mode: off}}'": "given False. YAML takes on, off, yes and no for true",
    "--trainer.max_steps many": "trainer.max_steps: must be a whole number; given many.",
    "--seed_everything true": "seed_everything: must be a whole number; given True.",
    # Classes and their options.
    "--model.policy FreeLogit": f"model.policy: must be one of {POLICIES}; given FreeLogit. Did "
    "you mean FreeLogits?",
    "--model.policy pgprune_lightning.policy.FreeLogit": "Did you mean FreeLogits?",
    "--model.policy Adam": f"model.policy: must be one of {POLICIES}; given Adam.",
    "--model.update.optimizer SGD": "one of Adam, NaturalGradient, ProjectedSGD; given SGD.",
    "--model.update.optimizer torch.optim.Adam": "torch.optim.Adam is not imported",
    "--model.estimator Reinforce": "given Reinforce. Did you mean PlainReinforce?",
    "--model.estimator.window 3": "given options of it alone. Name it before.",
    "--model.estimator LeaveOneOut --model.estimator.windw 3": "model.estimator (LeaveOneOut): "
    "there is no option windw. Its options: score_scale",
    "--model.estimator MovingAverageBaseline --model.estimator.window three": "model.estimator "
    "(MovingAverageBaseline): window: must be a whole number; given three.",
    "--trainer.callbacks EarlyStop --trainer.callbacks.patienc 3": "trainer.callbacks (EarlyStop): "
    "there is no option patienc. Did you mean patience?",
    "--config '{model: {policy: {clas_path: FreeLogits}}}'": "Did you mean class_path?",
    "--trainer.callbacks EarlyStopp": "given EarlyStopp. Did you mean EarlyStop?",
    "--trainer.logger wandb": "given wandb. Did you mean WandbLogger?",
    "--data.test '[{pth: x}]'": "(TextSource): there is no option pth. Did you mean path?",
}
"""What follows `fit`, and what the answer says."""

OF_OTHERS: dict[tuple[Callable[[], Any], str], str] = {
    (export_parser, ""): "--plan, --format, --output: missing.",
    (export_parser, "--format onnx"): (
        "--format: must be one of hf, uniform, padded, plan, gguf, decilm; given onnx."
    ),
    (export_parser, "--fromat hf"): "no option --fromat. Did you mean --format?",
    (export_parser, "--keep_ratio 0.5"): "Did you mean --keep-ratio?",
    (evaluate_parser, "--models a"): "there is no option --models. Did you mean --model?",
    (evaluate_parser, "--zero-shot boolq"): "--zero-shot: must be one of piqa, hellaswag, ",
    (evaluate_parser, "--lengths 128,256"): "must be a whole number; given 128,256. Write 128 256.",
    (compare_parser, "--seeds 0"): "--seeds: must be a list of whole numbers, such as [1], or null;"
    " given 0. Write [0].",
    (compare_parser, "--settings 0.7"): "given 0.7. Write ['0.7'].",
    (compare_parser, "--option.trainer.max_steps 5"): "Did you mean --options?",
    (bench_parser, "--execution fast"): "one of compact, dense_masked, batched, auto, or null;",
    (finetune_parser, "--lora-rank 8"): "there is no option --lora-rank. Did you mean --rank?",
    (report_parser, "--existing overwrite"): "--existing: must be one of stop, replace;",
    (study_parser, "--recipe a"): "there is no option --recipe. Did you mean --recipes?",
    (variance_parser, "--config a"): "--output: missing.",
}
JARGON = ("typing.", "Literal", "Union", "<class", "NoneType", "Namespace", "Expected a", "\n")


@pytest.fixture(scope="module")
def parser_of_fit() -> Any:
    """The parser of `fit`, made once."""
    return run_parser()


@pytest.mark.parametrize("arguments", OF_FIT)
def test_fit_says_what_to_write(parser_of_fit: Any, arguments: str) -> None:
    with pytest.raises(UserError) as refusal:
        parser_of_fit.parse_args(shlex.split(arguments))
    assert OF_FIT[arguments] in str(refusal.value)
    assert not [word for word in JARGON if word in str(refusal.value)]


@pytest.mark.parametrize(("parser", "arguments"), OF_OTHERS)
def test_every_command_says_what_to_write(parser: Callable[[], Any], arguments: str) -> None:
    made = parser()
    with pytest.raises(OptionError) as refusal:
        made.parse_args(shlex.split(arguments))
    line = str(refusal.value)
    assert refusal.value.program == made.prog
    assert OF_OTHERS[parser, arguments] in line
    assert not [word for word in JARGON if word in line]


@pytest.mark.parametrize(
    "parser", list(dict.fromkeys(parser for parser, _ in OF_OTHERS)), ids=lambda it: it.__name__
)
def test_help_shows_no_object_of_python(parser: Callable[[], Any]) -> None:
    text = parser().format_help()
    assert "--output" in text
    assert not [word for word in ("<function", "<locals>", "<class", " 0x") if word in text]


def test_the_help_of_fit_shows_none_either(parser_of_fit: Any) -> None:
    text = parser_of_fit.format_help()
    assert "(type: MaskPolicy," in " ".join(text.split())
    assert not [word for word in ("<function", "<locals>", "<class", " 0x") if word in text]


def test_a_group_can_be_a_file(parser_of_fit: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.yaml").write_text("path: a.txt")
    with pytest.raises(UserError, match=r"Write \./text\.yaml\."):
        parser_of_fit.parse_args(["--data.train", "text.yaml"])
    with pytest.raises(UserError, match=r"^model\.base_model, .*missing") as refusal:
        parser_of_fit.parse_args(["--data.train", "./text.yaml"])
    assert "data.train" not in str(refusal.value)
