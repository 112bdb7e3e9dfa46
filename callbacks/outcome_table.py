"""Prints the outcome of a run for a person at a terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pgprune_lightning.number_text import count_text, seconds_text, share_text

ROWS = (
    ("dense", "dense model"),
    ("initial", "untrained mask"),
    ("learned", "learned mask"),
)


def print_outcome(summary: dict[str, Any], run_dir: Path) -> None:
    """Print the table of perplexities and parameters, a sample of text, and where things lie.

    Args:
        summary: What `OutcomeReport` writes to `summary.json`.
        run_dir: The run's folder.
    """
    console = Console()
    console.print(_table(summary))
    sample = summary["sample"]
    if sample:
        console.print(f"[bold]{sample['prompt']}[/bold] ...", highlight=False)
        for name, label in (("dense", "dense model"), ("learned", "learned mask")):
            console.print(f"  {label}: ", sample[name].strip(), style="default", markup=False)
    console.print(
        f"{summary['steps']} steps, {seconds_text(summary['seconds'])}. Written to {run_dir}:"
    )
    for name, what in (
        ("plans/best", "the pruning plan"),
        ("metrics.csv", "every logged metric"),
        ("config.yaml", "the resolved configuration"),
        ("checkpoints/last.ckpt", "the last checkpoint"),
        ("summary.json", "this table"),
    ):
        console.print(f"  {name:<24}{what}", highlight=False)


def _table(summary: dict[str, Any]) -> Table:
    texts = [summary["text"], *summary["dense"]["other_texts"]]
    title = f"Perplexity at {summary['sequence_length']} tokens, keep ratio {summary['keep_ratio']}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for text in texts:
        table.add_column(text, justify="right")
    table.add_column("parameters", justify="right")
    table.add_column("of dense", justify="right")
    for key, label in ROWS:
        row = summary[key]
        values = [row["perplexity"], *row["other_texts"].values()]
        share = row["parameters"] / summary["dense"]["parameters"]
        table.add_row(
            label,
            *("overflow" if value is None else f"{value:,.1f}" for value in values),
            count_text(row["parameters"]),
            share_text(share),
        )
    return table
