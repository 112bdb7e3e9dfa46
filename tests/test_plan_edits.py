"""Whatever one field of plan.json is changed to, the plan is refused in one line or still right."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from pgprune_lightning.cli import main
from pgprune_lightning.errors import UserError
from pgprune_lightning.plan import PLAN_FILE, PruningPlan
from pgprune_lightning.report import read_run
from tests.plan_edits import edits
from tests.tiny_commands import TinyCommand

STILL_RIGHT = {
    *("validation: empty", "validation.text: empty", "validation.bos_per_block: missing"),
    *("validation.perplexity: null", "validation.perplexity: 10^18"),
    *("budget.protected_layers: empty", "budget.layer_keep_ratios: missing"),
}
"""A plan need not be validated; what is missing here has a default, which is the run's."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves a finished run."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(tiny_command: TinyCommand, finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    if not finished.exists():
        assert tiny_command("fit", f"--run_dir={finished}").status == 0
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_edits_are_refused_in_one_line_that_names_the_field(run: Path) -> None:
    folder = run / "plans" / "best"
    right = PruningPlan.load(folder)
    all_edits = edits(json.loads((folder / PLAN_FILE).read_text()))
    assert len({name for name, _ in all_edits}) == len(all_edits) == 216
    accepted = set()
    for name, text in all_edits:
        (folder / PLAN_FILE).write_text(text)
        try:
            plan = PruningPlan.load(folder)
        except UserError as error:
            field = re.sub(r"\.(\d+)", r"[\1]", name.partition(":")[0])
            said = str(error)
            assert str(folder / PLAN_FILE) in said, name
            assert "\n" not in said
            assert len(said) < 400
            last = f"'{field.rpartition('.')[2]}' is given twice"
            assert any(part in said for part in (field, last, "nested too deeply", "units")), said
        else:
            accepted.add(name)
            assert torch.equal(plan.mask_U, right.mask_U)
            assert (plan.base_model, plan.space, plan.step) == (
                right.base_model,
                right.space,
                right.step,
            )
    assert accepted == STILL_RIGHT


def test_a_report_is_written_without_the_plan_that_is_damaged(run: Path) -> None:
    path = run / "plans" / "best" / PLAN_FILE
    for name, text in edits(json.loads(path.read_text())):
        path.write_text(text)
        record = read_run(run, "run")
        assert ("best" in record.plans) == (name in STILL_RIGHT), name
        assert any(str(path) in sentence for sentence in record.missing) == (
            name not in STILL_RIGHT
        ), name


@pytest.mark.parametrize(
    "name",
    [
        "validation: empty",
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in sorted(STILL_RIGHT - {"validation: empty"})
        ),
    ],
)
def test_what_is_accepted_can_be_used(
    run: Path, name: str, tiny_texts: Path, tmp_path: Path
) -> None:
    path = run / "plans" / "best" / PLAN_FILE
    path.write_text(dict(edits(json.loads(path.read_text())))[name])
    text = ["--texts", str(tiny_texts / "test.txt"), "--lengths", "16"]
    for command in (
        ["export", "--plan", str(run), "--format", "hf", "--output", str(tmp_path / "exported")],
        ["report", str(run), "--output", str(tmp_path / "report.html")],
        ["evaluate", "--model", str(run), *text, "--output", str(tmp_path / "evaluated.json")],
    ):
        assert main(command) == 0, command[0]


def test_a_base_model_of_other_layers_is_refused_before_its_weights_are_read(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other"
    source = PruningPlan.load(run / "plans" / "best").base_model.source
    shutil.copytree(source, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    for command in (
        ["export", "--plan", str(run), "--format", "hf", "--output", str(tmp_path / "exported")],
        ["evaluate", "--model", str(run), "--output", str(tmp_path / "evaluated.json")],
    ):
        assert main([*command, "--base-model", str(path)]) == 2
        assert "has 3 layers; " in capsys.readouterr().err
