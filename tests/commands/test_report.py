import os
from pathlib import Path

import pytest

from pgprune_lightning.cli import main
from tests.report.conftest import made_plan
from tests.tiny_commands import Outcome, TinyCommand, refused


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    capsys.readouterr()
    try:
        status = main(["report", *arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    return Outcome(status, *capsys.readouterr())


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """A run of which there is one plan."""
    folder = tmp_path / "unfinished"
    made_plan(0, 3, 9.5).save(folder / "plans" / "best")
    return folder


def test_a_fit_and_its_report(tiny_command: TinyCommand) -> None:
    assert tiny_command("fit").status == 0
    output = tiny_command.run_dir / "report.html"
    reported = run_report(tiny_command, str(tiny_command.run_dir), "--output", str(output))
    assert reported.status == 0, reported.err
    assert reported.out.splitlines() == [reported.out.strip()]  # nothing is missing
    page = output.read_text()
    for said in (
        *("How s moved to the bounds: KV groups", "How s moved to the bounds: MLP channels"),
        *("Loss and baseline", "Keep-probabilities: MLP channels", "Sparsity by layer: KV groups"),
        *("memory at the peak", "A sample of text", "test text", "Validation perplexity"),
    ):
        assert said in page, said


def run_report(command: TinyCommand, *arguments: str) -> Outcome:
    command.outcome(0)
    return command.outcome(main(["report", *arguments]))


def test_what_is_missing_is_printed(capsys: pytest.CaptureFixture[str], unfinished: Path) -> None:
    output = unfinished.with_name("page.html")
    reported = run(capsys, str(unfinished), "--output", str(output))
    assert reported.status == 0
    assert "unfinished: summary.json is missing" in reported.out
    assert "9.50" in output.read_text()


def test_a_page_is_replaced_only_when_asked(
    capsys: pytest.CaptureFixture[str], unfinished: Path
) -> None:
    output = unfinished.with_name("page.html")
    output.write_text("older")
    arguments = (str(unfinished), "--output", str(output))
    refused(run(capsys, *arguments), "page.html exists", "--existing replace")
    assert output.read_text() == "older"
    assert run(capsys, *arguments, "--existing", "replace", "--title", "My <page>").status == 0
    assert "<h1>My &lt;page&gt;</h1>" in output.read_text()


def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], unfinished: Path, tmp_path: Path
) -> None:
    page = ("--output", str(tmp_path / "page.html"))
    refused(run(capsys), "give the folder of a run")
    refused(run(capsys, str(unfinished)), "--output: is missing")
    refused(run(capsys, str(tmp_path / "absent"), *page), "there is no folder")
    refused(run(capsys, str(tmp_path), *page), "holds no run")
    refused(run(capsys, str(unfinished), str(unfinished), *page), "given twice")
    refused(run(capsys, str(unfinished), "--output", str(tmp_path)), "cannot be written")
    refused(run(capsys, str(unfinished), *page, "--include", "no.json"), "no.json cannot be read: ")
    refused(run(capsys, "--wandb-workspace", "nobody"), "ENTITY/PROJECT")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_others_is_refused(
    capsys: pytest.CaptureFixture[str], unfinished: Path, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir(mode=0o500)
    page = ("--output", str(tmp_path / "theirs" / "page.html"))
    refused(run(capsys, str(unfinished), *page), "cannot be written")
