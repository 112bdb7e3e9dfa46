"""Commands that write results, run many times, and what they leave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from pgprune_lightning.atomic_write import TEMPORARY
from tests.faults.processes import last_words, start, wait
from tests.faults.warm_runs import WarmRuns, make_warm_runs

OF_THE_MACHINE = (
    *("provenance", "command", "seconds", "peak_memory_bytes", "memory_before_bytes"),
    *("run_dir", "resume", "default_root_dir"),
)
"""What of results no two runs have in common."""
WITH_TIMES = (".ckpt", "log.txt", "out.md", "table.csv", "table.md")
"""Ends of the names of files that hold such values, and are compared by name alone."""

Left = dict[str, Any]
"""What a folder holds, by the names of its files."""


@dataclass(frozen=True)
class Command:
    """A command that writes into a folder of its own.

    Args:
        name: How it is called here.
        arguments: What follows the program's name; `PLACE` is the folder of a run.
        folder: Where the folders of its runs go.
        logs: Where what they print goes.
        again: What it is given besides when it is started again after it was killed.
        old: A folder with an older result; None: it starts without one.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    logs: Path
    again: tuple[str, ...] = ()
    old: Path | None = None

    def place(self, run: str) -> Path:
        """The folder of a run, with the older result in it when it is asked for first."""
        place = self.folder / f"{self.name} {run}"
        if not place.exists():
            place.mkdir()
            if self.old is not None:
                shutil.copytree(self.old, place / "out")
        return place

    def log(self, run: str) -> Path:
        """What a run has printed; `RUN@NAME` shares the folder of others."""
        return self.logs / f"{self.name} {run}.log"

    def start(
        self, run: str, *options: str, prepare: Callable[[], None] | None = None, log: str = ""
    ) -> int:
        """Fork the command and return its process id.

        Args:
            run: The run.
            options: Besides its arguments.
            prepare: Called in the new process before the program.
            log: The name of its log, if it is another than the run's.
        """
        place = str(self.place(run))
        given = [argument.replace("PLACE", place) for argument in self.arguments]
        return start([*given, *options], self.log(log or run), prepare=prepare)

    def run(self, run: str, *options: str, prepare: Callable[[], None] | None = None) -> int:
        """Run the command and return its status."""
        return wait(self.start(run, *options, prepare=prepare))

    def whole(self, prepare: Callable[[], None] | None = None) -> Left:
        """What the run `whole`, which nothing happens to, leaves.

        Raises:
            RuntimeError: If it fails.
        """
        if self.run("whole", prepare=prepare):
            raise RuntimeError(last_words(self.log("whole")))
        return left_in(self.place("whole"))

    def completed(self, run: str, whole: Left) -> str:
        """Start a run again, and say what of it is not as it should be; empty if nothing is."""
        if status := self.run(run, *self.again):
            return f"again: status {status}: {last_words(self.log(run))}"
        return self.differs(run, whole)

    def differs(self, run: str, whole: Left) -> str:
        """What of a run is not as it should be; empty if nothing is."""
        return difference(left_in(self.place(run)), whole)

    def half_written(self, run: str, whole: Left) -> str:
        """What of a run that has not ended is neither whole, nor old, nor absent."""
        place = self.place(run)
        for path in place.rglob("*.json"):
            is_hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
            if not is_hidden and not _loads(path):
                return f"{path.name} is half written"
        if self.name.startswith(("export", "finetune")):
            return self._broken_folder(place, _inside("out", whole))
        return ""

    def _broken_folder(self, place: Path, new: Left) -> str:
        old = {} if self.old is None else left_in(self.old)
        found = left_in(place / "out")
        if found and found not in (old, new):
            return f"out is half written: {difference(found, new)}"
        # Between two renames the old one may have another name, as long as it is there.
        folders = {file.parent for file in place.rglob("export.json")}
        if old and not any(left_in(folder) in (old, new) for folder in folders):
            return "neither the old result nor the new one is there"
        return ""


@dataclass(frozen=True)
class Commands:
    """The commands, and the runs of `fit` whose results they use.

    Args:
        runs: Runs of a small model; `whole` is one of them.
        each: The commands.
    """

    runs: WarmRuns
    each: tuple[Command, ...]


def make_commands(data: Path, folder: Path) -> Commands:
    """Run `fit` and `export` once, and say what other commands do with their results.

    Args:
        data: The tests' data.
        folder: An empty folder for all results.
    """
    # What they need is imported once.
    import matplotlib.figure
    import peft

    del matplotlib, peft
    runs = make_warm_runs(data, folder)
    runs.whole()
    made = partial(Command, folder=folder, logs=folder)
    run, text = str(runs.run_dir("whole")), str(data / "tinystories" / "stories.txt")
    export = ("export", "--plan", run, "--format", "hf", "--output", "PLACE/out", *_CPU)
    exported, older = made("exported", export), made("older", (*export, "--keep-ratio", "0.9"))
    exported.whole()
    older.whole()
    model, old = str(exported.place("whole") / "out"), older.place("whole") / "out"
    finetune = ("finetune", "--model", model, "--output", "PLACE/out", *_CPU, *_QUICK)
    records = ("--records", str(data / "alpaca" / "alpaca_9k.jsonl"))
    evaluate = ("evaluate", "--model", run, model, "--output", "PLACE/out.json", "--texts", text)
    compare = ("compare", "--config", str(_experiment(runs, text)), "--output", "PLACE/out")
    commands = (
        made("export", export, again=_REPLACE),
        made("export-over", (*export, *_REPLACE), old=old),
        made("finetune", (*finetune, *records), again=("--resume", "auto")),
        made("evaluate", (*evaluate, *_CPU, *_READ), again=_REPLACE),
        made("compare", compare),
    )
    return Commands(runs, commands)


_CPU = ("--device", "cpu")
_REPLACE = ("--existing", "replace")
_QUICK = (
    *("--num-records", "9", "--batch-size", "4", "--epochs", "2", "--max-length", "250"),
    *("--checkpoint-every", "2"),
)
_READ = ("--tokens", "2048", "--lengths", "32", "--dtype", "float32")


def left_in(folder: Path) -> Left:
    """What a folder holds, without what says when, where and how it was made.

    Nor how often it was saved: on a full disk there are fewer checkpoints. A killed process's
    temporary file stays in a folder that is the user's, where it may be another process's.
    """
    left: Left = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith(TEMPORARY) or path.match("step=*.ckpt"):
            continue
        if path.is_dir() or name.endswith(WITH_TIMES):
            left[name] = None
        elif path.suffix == ".json" and _loads(path):
            left[name] = _without_machine(json.loads(path.read_text().replace(str(folder), "")))
        elif path.suffix == ".yaml":
            left[name] = _without_machine(yaml.safe_load(path.read_text()))
        else:
            left[name] = path.read_bytes()
    return left


def difference(left: Left, whole: Left) -> str:
    """Names of files that are missing, that should not be there, or that differ."""
    missing, more = whole.keys() - left.keys(), left.keys() - whole.keys()
    changed = {name for name in whole.keys() & left.keys() if whole[name] != left[name]}
    said = {"missing": missing, "should not be there": more, "differs": changed}
    return "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in said.items() if names)


def _experiment(runs: WarmRuns, text: str) -> Path:
    path = runs.folder / "experiment.yaml"
    test = {
        "path": text,
        "document_separator": "<|endoftext|>",
        "num_blocks": 8,
        "part": [0.9, 1.0],
    }
    experiment = {
        "title": "Three masks of a small model",
        "recipe": str(runs.config),
        "options": {"data.test": [test]},
        "methods": {
            "dense": {"kind": "dense"},
            "wanda_sp": {"kind": "metric"},
            "learned": {"kind": "learned"},
        },
        "seeds": [0],
        "evaluation_lengths": [32],
        "picture": [{"kind": "hamming"}],
    }
    path.write_text(yaml.safe_dump(experiment, sort_keys=False))
    return path


def _inside(folder: str, left: Left) -> Left:
    start = f"{folder}/"
    return {name.removeprefix(start): left[name] for name in left if name.startswith(start)}


def _without_machine(value: Any) -> Any:
    if isinstance(value, dict):
        kept = (name for name in value if name not in OF_THE_MACHINE)
        return {name: _without_machine(value[name]) for name in kept}
    return [_without_machine(item) for item in value] if isinstance(value, list) else value


def _loads(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True
