"""Cost against keep ratio, model size and units, by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {"reference": ("#D55E00", "s--"), "ours": ("#0072B2", "o-")}
SUFFIXES = (".png", ".svg", ".pdf")


def check_picture(path: Path) -> None:
    """Refuse a file that could not be drawn, before anything is timed.

    Raises:
        UserError: The file's kind is unknown.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--picture: {path.name!r} must end in one of {', '.join(SUFFIXES)}.")


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw results side by side.

    Args:
        results: What `bench` writes, of one model or of several.
        path: The file; its folder is made when missing.
    """
    from matplotlib.figure import Figure

    panels: list[Callable[[Axes, Sequence[dict[str, Any]]], None]] = [_by_keep_ratio]
    if len({result["parameters"] for result in results}) > 1:
        panels.append(_by_size)
    if any("scaling" in result for result in results):
        panels.append(_by_units)
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes, results)
        axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.removeprefix("."), dpi=150)
    write_atomically(path, picture.getvalue())


def _by_keep_ratio(axes: Axes, results: Sequence[dict[str, Any]]) -> None:
    for result in results:
        entries = sorted(result.get("keep_ratios", [result]), key=lambda part: part["keep_ratio"])
        ratios = [entry["keep_ratio"] for entry in entries]
        for way, (colour, style) in STYLES.items():
            seconds = [entry[way]["median_seconds"] for entry in entries]
            name = Path(result["model"]).name  # of a folder; a hub id without its owner
            axes.plot(ratios, seconds, style, color=colour, label=f"{name}, {way}")
    if len(results) > 1:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("keep ratio")
    axes.set_ylabel("seconds a step")
    axes.legend(fontsize="small")


def _by_size(axes: Axes, results: Sequence[dict[str, Any]]) -> None:
    by_size = sorted(results, key=lambda result: float(result["parameters"]))
    sizes = [result["parameters"] for result in by_size]
    for way, (colour, style) in STYLES.items():
        seconds = [result[way]["median_seconds"] for result in by_size]
        axes.loglog(sizes, seconds, style, color=colour, label=way)
    axes.set_xlabel("parameters")
    axes.set_ylabel("seconds a step, first keep ratio")
    axes.legend(fontsize="small")


def _by_units(axes: Axes, results: Sequence[dict[str, Any]]) -> None:
    scaling = next(result["scaling"] for result in results if "scaling" in result)
    units = [entry["units"] for entry in scaling]
    for name, marker in (("sample", "^"), ("estimate", "s"), ("update", "o")):
        seconds = [entry[f"{name}_seconds"] for entry in scaling]
        label = "step and projection" if name == "update" else name
        axes.loglog(units, seconds, marker + "-", label=label)
    axes.set_xlabel("units")
    axes.set_ylabel("seconds")
    axes.legend(fontsize="small")
