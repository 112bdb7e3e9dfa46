"""The options of the command line and what its help says of them."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pgprune_lightning.cli import COMMANDS, main
from pgprune_lightning.run_options import run_parser

TEXT_SOURCE = """path label name split data_files revision field local_copy join
    document_separator part num_blocks wikitext_style optional"""
OPTIONS = {
    "": "config seed_everything run_dir existing_run resume ckpt_path",
    "wandb.": "mode project name group entity tags",
    "model.": "base_model keep_ratio policy estimator",
    "model.units.": "kinds channels_per_unit protected_layers round_to tensor_parallel",
    "model.budget.": "scope fill layer_keep_ratios probability_bounds progressive",
    "model.update.": "optimizer lr lr_rule lr_factors lr_schedule",
    "model.objective.": "num_mask_samples mask_granularity loss",
    "model.execution.": "mode dtype attention shard",
    "model.initialization.": """metric normalization projection slope shift_to_budget constant
        num_blocks refine_steps plan scores""",
    "data.": """test tokenizer block_length evaluation_block_length batch_size
        evaluation_batch_size num_workers cache_dir bos_per_block""",
    "data.train.": TEXT_SOURCE,
    "data.validation.": TEXT_SOURCE,
    "sparsity_tracker.": "by_layer",
    "policy_pictures.": "every_n_steps",
    "rank_agreement.": "every_n_steps",
    "outcome_report.": "prompt sample_tokens",
    "checkpoint.": "every_n_train_steps keep",
}
"""Every option of ours: a change here is a change for users and their configs."""

UNITS = {
    "model.keep_ratio": "(0, 1]",
    "model.units.channels_per_unit": "channels",
    "model.budget.layer_keep_ratios": "in [0, 1]",
    "model.units.round_to": "channels",
    "model.units.tensor_parallel": "Devices",
    "model.update.lr": "per (nat per token)",
    "model.objective.num_mask_samples": "Masks",
    "model.objective.mask_granularity": "masks",
    "model.objective.loss": "nats per token",
    "model.execution.shard": "Ranks",
    "rank_agreement.every_n_steps": "steps",
    "policy_pictures.every_n_steps": "Steps",
    "model.initialization.num_blocks": "sequences",
    "data.block_length": "tokens",
    "data.evaluation_block_length": "tokens",
    "data.batch_size": "sequences",
    "data.evaluation_batch_size": "sequences",
    "data.num_workers": "processes",
    "data.train.num_blocks": "blocks",
    "outcome_report.sample_tokens": "tokens",
    "checkpoint.every_n_train_steps": "Steps",
    "checkpoint.keep": "checkpoints",
}


@pytest.fixture(scope="module")
def help_by_option() -> dict[str, str]:
    """What `fit --help` says of each option that is not Lightning's."""
    return dict(_options(run_parser()))


def _options(parser: Any) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        is_ours = not action.dest.startswith("trainer.")
        is_value = action.dest not in ("print_config", "print_shtab") and not action.dest.endswith(
            "help"
        )
        is_group = action.help == "Path to a configuration file."
        if is_ours and is_value and not is_group and action.option_strings[0].startswith("-"):
            yield action.dest, action.help or ""


def test_the_options_are_these(help_by_option: dict[str, str]) -> None:
    expected = {group + name for group, names in OPTIONS.items() for name in names.split()}
    assert set(help_by_option) == expected


def test_every_option_says_what_it_does(help_by_option: dict[str, str]) -> None:
    silent = [name for name, text in help_by_option.items() if len(text) < 20]
    assert not silent, f"say in the docstring of their class what these do: {silent}"


@pytest.mark.parametrize(("option", "unit"), UNITS.items())
def test_numbers_have_units(help_by_option: dict[str, str], option: str, unit: str) -> None:
    assert unit in help_by_option[option]


def test_help_leads_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "policy gradients" in text
    assert "configs/quickstart.yaml" in text
    for command in COMMANDS:
        assert f"\n  {command} " in text
    assert max(map(len, text.splitlines())) <= 100


def test_help_and_version_import_no_library() -> None:
    """They would take seconds: `python -m pgprune_lightning --help` answers at once."""
    code = (
        "import sys; from pgprune_lightning.cli import main; main(sys.argv[1:]); "
        "print([name for name in ('torch', 'lightning', 'transformers') if name in sys.modules])"
    )
    for option in ("--help", "--version"):
        run = subprocess.run(
            [sys.executable, "-c", code, option], capture_output=True, text=True, check=True
        )
        assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("fitt", "there is no command fitt. Did you mean fit?"),
        ("exprot", "there is no command exprot. Did you mean export?"),
        ("xyzzy", "there is no command xyzzy. Commands: fit, validate, test, report,"),
        ("--config a.yaml fit", "no command is given. Give it first: pgprune fit --config FILE"),
        ("", "no command is given. Give one of fit, validate, test, report,"),
    ],
)
def test_an_unknown_command_is_one_line(
    capsys: pytest.CaptureFixture[str], given: str, says: str
) -> None:
    assert main(given.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {says}")
    assert error.count("\n") == 1
