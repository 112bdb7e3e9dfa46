"""A config names classes of the program's own packages, and no other module is imported for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgprune_lightning.errors import UserError
from pgprune_lightning.option_messages import PLUGINS
from pgprune_lightning.run_options import run_parser
from tests.tiny_commands import TinyCommand, refused
from tests.tiny_experiments import Compare

NAMES_A_CLASS = (
    "--model.policy={}.Evil",
    "--model.policy.class_path={}.Evil",
    "--model.update.optimizer={}.Evil",
    "--model.estimator={}.Evil",
    "--model.estimator={}.make",
    "--model.budget.progressive={}.Evil",
    "--trainer.callbacks={}.Evil",
    "--trainer.callbacks=[{}.Evil]",
    "--trainer.callbacks.class_path={}.Evil",
    "--trainer.logger.class_path={}.Evil",
    "--trainer.profiler.class_path={}.Evil",
    "--trainer.strategy.class_path={}.Evil",
    "--trainer.accelerator.class_path={}.Evil",
    "--trainer.plugins.class_path={}.Evil",
    "--data.train={}.Evil",
    "--data.test=[{}.Evil]",
    "--wandb={}.Evil",
    "--checkpoint={}.Evil",
)


@pytest.fixture
def evil_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> tuple[str, Path]:
    """A module that leaves a file when it is imported, and the file."""
    name, mark = f"evil_{abs(hash(request.node.name))}", tmp_path / "imported"
    code = (
        f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\ndef make() -> Evil: return Evil()\n"
    )
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name, mark


def test_a_module_that_a_config_names_is_not_imported(evil_module: tuple[str, Path]) -> None:
    name, mark = evil_module
    parser = run_parser()
    for option in NAMES_A_CLASS:
        with pytest.raises(UserError, match=rf"{name}\.") as refusal:
            parser.parse_args([option.format(name)])
        assert str(refusal.value).startswith(
            option[2:].partition("=")[0].removesuffix(".class_path")
        )
        assert not mark.exists(), option


@pytest.mark.usefixtures("no_weights_loaded")
def test_nor_is_one_in_a_file(tiny_command: TinyCommand, evil_module: tuple[str, Path]) -> None:
    name, mark = evil_module
    overlay = f"trainer: {{callbacks: [{{class_path: {name}.Evil, init_args: {{a: 1}}}}]}}"
    outcome = tiny_command("fit", "--config", tiny_command.overlay(overlay))
    refused(outcome, f"trainer.callbacks: {name}.Evil is not imported", PLUGINS)
    assert len(outcome.err.splitlines()) == 1
    assert not mark.exists()


@pytest.mark.parametrize(
    "given", ["{{trainer: {{callbacks: {{class_path: {}.Evil}}}}}}", "{}.Evil"]
)
def test_nor_one_that_an_option_of_a_comparison_names(
    compare: Compare, evil_module: tuple[str, Path], given: str
) -> None:
    name, mark = evil_module
    place = "--options" if given.startswith("{{") else "--options.model.policy.class_path"
    outcome = compare(f"{place}={given.format(name)}")
    refused(outcome, f"{name}.Evil is not imported", "PGPRUNE_PLUGINS")
    assert not mark.exists()


PLUGIN = """
from pgprune_lightning.policy import MovingAverageBaseline

class OfMyOwn(MovingAverageBaseline):
    \"\"\"Its options are those of the paper's.\"\"\"

class NoEstimator:
    \"\"\"Of another type.\"\"\"
"""


def test_a_package_of_ones_own_is_named_by_the_environment(
    tiny_command: TinyCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_estimators.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    option = "--model.estimator=my_own_estimators.OfMyOwn"
    refused(tiny_command("fit", option), "my_own_estimators.OfMyOwn is not imported", PLUGINS)
    monkeypatch.setenv(PLUGINS, "my_own_estimators")
    run = tiny_command("fit", option, "--trainer.max_steps=3")
    assert run.status == 0, run.err
    assert (
        "class_path: my_own_estimators.OfMyOwn"
        in (tiny_command.run_dir / "config.yaml").read_text()
    )
    wrong = tiny_command("fit", option.replace("OfMyOwn", "NoEstimator"))
    refused(wrong, "must be one of Antithetic", "given my_own_estimators.NoEstimator")


def test_the_variable_is_checked(
    tiny_command: TinyCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PLUGINS, "*")
    refused(tiny_command("fit"), PLUGINS, "names of packages", "'*'")
