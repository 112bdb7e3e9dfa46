"""A run on a real Slurm: preempted twice, it ends as one that was not; cancelled, it stays so."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / "tests" / "cluster" / "one_node_slurm.sh"
BATCH = ROOT / "configs" / "cluster" / "slurm.sbatch"
STEPS = 600
STATES_OF_THE_END = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm that only this test sees; skipped where its packages are not installed."""
    if os.getuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        pytest.skip("needs root and Slurm's packages: make test-slurm installs them")
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    started = subprocess.run([SLURM, "start", folder], capture_output=True, text=True, check=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            if started.returncode == 3:
                pytest.skip(started.stderr.strip().splitlines()[-1])
            assert started.returncode == 0, started.stderr
            yield
        finally:
            subprocess.run([SLURM, "stop", folder], check=True)


class Job:
    """A run of the tiny trained model, submitted as a user submits one."""

    def __init__(
        self, folder: Path, data: Path, *options: str, slurm: tuple[str, ...] = ()
    ) -> None:
        self.log = folder / "log.txt"
        environment = os.environ | {
            "RUNS": str(folder),
            "PYTHON": sys.executable,
            "PGPRUNE_DATA": str(data),
        }
        submitted = subprocess.run(
            [
                *("sbatch", "--parsable", "--ntasks-per-node=1", "--gres=none"),
                *("--cpus-per-task=1", f"--output={self.log}", *slurm, str(BATCH)),
                *("--config", "configs/recipes/tiny_stories.yaml"),
                *(f"--trainer.max_steps={STEPS}", "--trainer.log_every_n_steps=1"),
                *("--trainer.val_check_interval=200", *options),
            ],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert submitted.returncode == 0, submitted.stderr
        self.id = submitted.stdout.strip()
        self.run_dir = folder / f"pgprune-{self.id}"

    def show(self, field: str) -> str:
        shown = _said("scontrol", "--oneliner", "show", "job", self.id)
        fields = dict(pair.split("=", 1) for pair in shown.split() if "=" in pair)
        return fields[field]

    def rows(self) -> list[str]:
        file = self.run_dir / "metrics.csv"
        return file.read_text().splitlines()[1:] if file.exists() else []

    def wait(self, until: Callable[[], bool], seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)

    def wait_for_rows(self, number: int) -> None:
        self.wait(lambda: len(self.rows()) >= number or self.has_ended())
        assert not self.has_ended(), self.said()

    def wait_for_the_end(self) -> None:
        self.wait(self.has_ended)

    def has_ended(self) -> bool:
        return self.show("JobState") in STATES_OF_THE_END

    def said(self) -> str:
        log = self.log.read_text() if self.log.exists() else "nothing"
        return f"{self.show('JobState')}, {len(self.rows())} rows, said:\n{log}"


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_run_that_is_preempted_twice_ends_as_one_that_is_not(
    slurm: None, pgprune_data: Path, tmp_path: Path
) -> None:
    job = Job(tmp_path, pgprune_data)
    job.wait_for_rows(STEPS // 5)
    _said("scancel", "--signal=USR1", job.id)  # as before the end of its time
    job.wait(lambda: job.show("Restarts") == "1" or job.has_ended())
    stopped_at = len(job.rows())
    assert STEPS // 5 <= stopped_at < STEPS // 2, job.said()
    job.wait_for_rows(max(stopped_at + 20, STEPS // 2))
    _said("scontrol", "requeue", job.id)  # as Slurm does for a job of higher priority
    job.wait_for_the_end()
    assert job.show("JobState") == "COMPLETED", job.said()
    assert job.show("Restarts") == "2", job.said()
    assert job.log.read_text().count("Going on from") == 2

    alone = Job(tmp_path, pgprune_data)
    alone.wait_for_the_end()
    assert alone.show("JobState") == "COMPLETED", alone.said()
    assert alone.show("Restarts") == "0", alone.said()
    assert job.rows() == alone.rows()
    for plan in ("initial", "best", "last"):
        ours, theirs = (_files(run.run_dir / "plans" / plan) for run in (job, alone))
        assert ours == theirs, plan
    ours, theirs = (
        torch.load(run.run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (job, alone)
    )
    assert all(value.equal(theirs[name]) for name, value in ours.items())


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_ranks_stop_and_go_on_together(slurm: None, pgprune_data: Path, tmp_path: Path) -> None:
    ranks = ("--ntasks-per-node=2", "--overcommit")
    job = Job(tmp_path, pgprune_data, "--trainer.max_steps=150", slurm=ranks)
    job.wait_for_rows(30)
    _said("scancel", "--signal=USR1", job.id)
    job.wait_for_the_end()
    assert job.show("JobState") == "COMPLETED", job.said()
    assert job.show("Restarts") == "1", job.said()
    steps = [int(row.split(",")[0]) for row in job.rows()]
    assert sorted(set(steps)) == list(range(steps[0], 151)), job.said()
    config = yaml.safe_load((job.run_dir / "config.yaml").read_text())
    assert int(config["trainer"]["devices"]) == 2
    assert config["trainer"]["strategy"] == "ddp"


def test_a_cancelled_run_does_not_come_back(
    slurm: None, pgprune_data: Path, tmp_path: Path
) -> None:
    job = Job(tmp_path, pgprune_data)
    job.wait_for_rows(20)
    _said("scancel", job.id)
    job.wait(lambda: job.show("JobState") == "CANCELLED")
    time.sleep(8)  # longer than a requeued job waits here
    assert job.show("JobState") == "CANCELLED", job.said()
    assert job.show("Restarts") == "0"
    assert (job.run_dir / "checkpoints" / "last.ckpt").is_file()


def test_a_sweep_has_a_line_and_a_folder_for_each_task(
    slurm: None, pgprune_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tmp_path / "sweep.txt"
    sweep.write_text("--seed_everything 3\n--seed_everything 4 --model.update.lr 0.5\n")
    monkeypatch.setenv("SWEEP", str(sweep))
    job = Job(tmp_path, pgprune_data, "--trainer.max_steps=2", slurm=("--array=1-3",))
    job.wait(lambda: not _said("squeue", "--noheader", "--jobs", job.id).strip())
    configs = {path.parent.name: path.read_text() for path in tmp_path.glob("*/config.yaml")}
    assert configs.keys() == {f"pgprune-{job.id}-{task}" for task in (1, 2)}
    assert "seed_everything: 3" in configs[f"pgprune-{job.id}-1"]
    assert "    lr: 0.5\n" in configs[f"pgprune-{job.id}-2"]
    assert "has no line '3'; give --array 1-N" in job.log.read_text()
