"""`report`: shows runs on one HTML page."""

# No `from __future__ import annotations`: the command line reads these types.
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.commands.experiment_options import command_line
from pgprune_lightning.commands.output_file import check_writable
from pgprune_lightning.console import OneLineErrorParser, quiet_libraries
from pgprune_lightning.errors import UserError
from pgprune_lightning.folder_lock import exclusive_output
from pgprune_lightning.number_text import bytes_text
from pgprune_lightning.report import (
    check_run,
    distinct_names,
    read_included,
    read_run,
    report_page,
)
from pgprune_lightning.report.wandb_workspace import check_workspace, make_workspace

DESCRIPTION = (
    "Writes one HTML page about one run or several: outcome, loss and validation, "
    "keep-probabilities and sparsity by layer, time and memory. The page needs no network. "
    "Start with: pgprune report runs/quickstart --output report.html"
)


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows `report`.

    Returns:
        The exit status: 0.

    Raises:
        UserError: If there is no such run, or the page cannot be written.
    """
    quiet_libraries()
    given = report_parser().parse_args(list(arguments))
    if given.wandb_workspace is not None:
        check_workspace(given.wandb_workspace)
    elif not given.runs:
        raise UserError("report: give the folder of a run: pgprune report RUN --output FILE.html")
    if given.runs:
        if given.output is None:
            raise UserError("--output: is missing; give the HTML file that is to be written.")
        with exclusive_output(Path(given.output), "--output"):
            _write_page(given, command_line("report", arguments))
    if given.wandb_workspace is not None:
        print(f"Workspace: {make_workspace(given.wandb_workspace)}")
    return 0


def report_parser() -> OneLineErrorParser:
    """The command's own options."""
    parser = OneLineErrorParser(prog="pgprune report", description=DESCRIPTION)
    add = parser.add_argument
    add("runs", type=str, nargs="*", help="Folders of runs that fit has written, finished or not.")
    add("--output", type=str | None, default=None, help="The HTML file to write.")
    add(
        "--existing",
        type=Literal["stop", "replace"],
        default="stop",
        help="If the file exists: stop with an error, or replace it.",
    )
    add(
        "--title",
        type=str | None,
        default=None,
        help="Title of the page; default: the names of the runs.",
    )
    add(
        "--include",
        type=str,
        nargs="+",
        default=[],
        help="JSON files of other commands to show too: export.json, results of evaluate, "
        "compare.json. Files in the folders of the runs are found without it.",
    )
    add(
        "--wandb-workspace",
        type=str | None,
        default=None,
        help="ENTITY/PROJECT on W&B in which to save a workspace with the panels of docs/wandb.md; "
        "needs a login and the extra wandb, and no runs.",
    )
    return parser


def _write_page(given: Any, command: str) -> None:
    folders, output = [Path(run) for run in given.runs], Path(given.output)
    for folder in folders:
        check_run(folder)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("report: a run is given twice; give each once.")
    check_writable("output", output)
    if output.exists() and given.existing == "stop":
        raise UserError(f"--output: {output} exists; give another name, or --existing replace.")
    included = {file: read_included(Path(file)) for file in given.include}
    names = distinct_names(folders)
    records = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    title = given.title or f"Pruning report: {', '.join(names[:3])}{', …' * (len(names) > 3)}"
    page = report_page(records, included, title, command).encode()
    write_atomically(output, page)
    for record in records:
        for sentence in record.missing:
            print(f"{record.name}: {sentence}")
    print(f"Written to {output} ({bytes_text(len(page))}).")
