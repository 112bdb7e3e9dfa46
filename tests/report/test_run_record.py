import shutil
from pathlib import Path

import pytest

from pgprune_lightning.errors import UserError
from pgprune_lightning.report import distinct_names, read_run
from tests.damaged_files import METRICS
from tests.report.conftest import WriteRun


def test_a_finished_run_lacks_nothing_but_the_value_that_is_no_number(write_run: WriteRun) -> None:
    record = read_run(write_run(), "run")
    assert record.missing == ["1 values of metrics.csv are no finite numbers: not drawn."]
    assert record.metrics["train/loss"] == [(1, 6.5), (100, 5.5), (200, 4.5)]
    assert record.plan is not None
    assert (record.plan.step, record.last_step) == (200, 300)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("summary.json", "the run has not come to its end; it has logged up to step 300 of 300"),
        ("config.yaml", "the options of the run are not known"),
        ("metrics.csv", "there are no curves"),
        ("plans/best", "plans/best is missing"),
        ("plans", "plans/initial is missing"),
    ],
)
def test_what_is_missing_is_said(write_run: WriteRun, name: str, sentence: str) -> None:
    folder = write_run()
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert any(sentence in said for said in read_run(folder, "run").missing)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", '{"dense": '),
        ("summary.json", "[1]"),
        ("config.yaml", "a: [b"),
        ("config.yaml", "\x00"),
        ("metrics.csv", ""),
        ("metrics.csv", "step,train/loss\nx,1\n3"),
        ("plans/best/plan.json", "{}"),
        ("summary.json", '{"a": ' + "[" * 10_000 + "]" * 10_000 + "}"),
        ("config.yaml", "a: " + "[" * 10_000 + "]" * 10_000),
    ],
)
def test_what_is_damaged_is_said(write_run: WriteRun, name: str, content: str) -> None:
    folder = write_run()
    (folder / name).write_text(content)
    assert any(Path(name).name in said for said in read_run(folder, "run").missing)


def test_bytes_that_are_no_text_are_said(write_run: WriteRun) -> None:
    folder = write_run()
    for name in ("metrics.csv", "config.yaml", "summary.json"):
        (folder / name).write_bytes(b"\xff\xfe\x80")
    missing = read_run(folder, "run").missing
    for name in ("metrics.csv", "config.yaml", "summary.json"):
        assert any(name in said and "cannot be read" in said for said in missing)


@pytest.mark.parametrize("name", METRICS)
def test_damaged_metrics_are_said_or_read(write_run: WriteRun, name: str) -> None:
    folder = write_run()
    METRICS[name](folder / "metrics.csv")
    record = read_run(folder, "run")
    if name in ("half a row", "NULs at the end, as after a power cut"):
        assert record.metrics["train/loss"][:2] == [(1, 6.5), (100, 5.5)]
    else:
        assert record.metrics == {}
        (said,) = (said for said in record.missing if "there are no curves" in said)
        assert str(folder / "metrics.csv") in said


def test_a_row_that_is_being_written_is_left_out(write_run: WriteRun) -> None:
    folder = write_run()
    with (folder / "metrics.csv").open("a") as file:
        file.write("400,,12")  # of 12.5
    assert read_run(folder, "run").metrics["train/loss"] == [(1, 6.5), (100, 5.5), (200, 4.5)]


def test_a_run_on_wandb_is_named(write_run: WriteRun) -> None:
    folder = write_run(config={"wandb": {"mode": "online"}})
    assert any("wandb_run_id.txt is missing" in said for said in read_run(folder, "run").missing)
    (folder / "wandb_run_id.txt").write_text("abcd1234")
    record = read_run(folder, "run")
    assert record.wandb_id == "abcd1234"
    assert not any("wandb" in said for said in record.missing)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        read_run(tmp_path / "absent", "run")
    with pytest.raises(UserError, match="holds no run"):
        read_run(tmp_path, "run")
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(UserError, match=r"--include .*compare\.json"):
        read_run(tmp_path, "run")


def test_names_tell_runs_apart() -> None:
    assert distinct_names([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    names = distinct_names([Path("x/1/run"), Path("x/2/run"), Path("y/2/run")])
    assert names == ["x/1/run", "x/2/run", "y/2/run"]
