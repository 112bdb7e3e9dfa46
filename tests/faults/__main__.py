"""`make test-faults`: kills, stops, bad input and a soak; the last line says what was lost."""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Before the libraries are imported: a forked process must find no threads of its parent's.
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", WANDB_MODE="offline")


def main() -> int:
    """Run the experiments; the status is 1 where something was lost."""
    from tests.faults.bad_input import give_bad_input, make_tiny_runs
    from tests.faults.kills import kill_runs
    from tests.faults.soak import soak
    from tests.faults.stops import stop_runs
    from tests.faults.tally import Tally
    from tests.faults.warm_runs import WarmRuns, make_warm_runs
    from tests.tiny_runs import write_tiny_model, write_tiny_texts

    chosen = _arguments()
    data = os.environ.get("PGPRUNE_DATA")
    if not data:
        print("PGPRUNE_DATA is not set: it names the folder with the tests' data", file=sys.stderr)
        return 2
    total = Tally()
    with tempfile.TemporaryDirectory(prefix="pgprune-faults-") as scratch:

        def made(name: str) -> WarmRuns:
            folder = Path(scratch) / name
            folder.mkdir()
            return make_warm_runs(Path(data), folder)

        def tiny() -> WarmRuns:
            folder = Path(scratch) / "bad-input"
            folder.mkdir()
            model, texts = write_tiny_model(folder / "m"), write_tiny_texts(folder / "t")
            return make_tiny_runs(model, texts, folder)

        experiments: dict[str, Callable[[], Tally]] = {
            "bad input": lambda: give_bad_input(tiny()),
            "SIGKILL": lambda: kill_runs(made("kills"), chosen.kills, chosen.seed),
            "SIGTERM": lambda: stop_runs(made("stops"), chosen.stops, chosen.seed),
            "soak": lambda: soak(made("soak"), chosen.soak_steps),
        }
        if not chosen.bad_input:
            del experiments["bad input"]
        print(f"seed {chosen.seed}", flush=True)
        for name, experiment in experiments.items():
            start = time.monotonic()
            tally = experiment()
            total += tally
            print(f"{name}: {tally} ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"faults: {total}")
    return 1 if total.losses else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="runs killed with SIGKILL")
    parser.add_argument("--stops", type=int, default=20, help="runs stopped with SIGTERM")
    parser.add_argument("--soak-steps", type=int, default=2000, help="steps of the long run")
    parser.add_argument(
        "--bad-input",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether to give every kind of bad input",
    )
    parser.add_argument("--seed", type=int, default=random.randrange(2**16), help="of the moments")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
