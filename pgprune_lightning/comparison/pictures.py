"""The results as pictures, PNG and SVG, by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.comparison.experiment import Experiment, Picture
from pgprune_lightning.comparison.layer_pictures import draw_hamming, draw_sparsity
from pgprune_lightning.comparison.overview_pictures import draw_bars, draw_lines
from pgprune_lightning.comparison.results import Results
from pgprune_lightning.comparison.setting_groups import grouped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150

_OVERVIEWS: dict[str, Callable[[Picture, Results], Figure]] = {
    "bars": draw_bars,
    "lines": draw_lines,
}
_BY_LAYER: dict[str, Callable[[str, str, dict[str, Any]], Figure]] = {
    "hamming": draw_hamming,
    "sparsity": draw_sparsity,
}


def draw(experiment: Experiment, results: Results, output: Path) -> list[str]:
    """Draw the pictures of an experiment.

    Args:
        experiment: Says which.
        results: What they show.
        output: Their folder.

    Returns:
        Names of the files.
    """
    import matplotlib as mpl

    names = []
    for position, picture in enumerate(experiment.pictures, 1):
        for label, figure in _figures(picture, experiment, results):
            stem = "_".join(filter(None, (f"picture{position}", picture.kind, label)))
            for suffix in ("png", "svg"):
                # Without a date and with fixed ids, equal results are equal files.
                with mpl.rc_context({"svg.hashsalt": "pgprune"}):
                    metadata = {"Date": None} if suffix == "svg" else None
                    content = io.BytesIO()
                    figure.savefig(content, format=suffix, dpi=DOTS_PER_INCH, metadata=metadata)
                write_atomically(output / f"{stem}.{suffix}", content.getvalue())
                names.append(f"{stem}.{suffix}")
    return names


def _figures(
    picture: Picture, experiment: Experiment, results: Results
) -> Iterator[tuple[str, Figure]]:
    """A picture of each group of settings, or one of each where it shows one setting's layers."""
    if picture.kind in ("bars", "lines"):
        for group, settings in grouped(results["settings"]).items():
            title = "\n".join(filter(None, (results["title"], group)))
            part = results | {"title": title, "settings": settings}
            yield group.replace(" ", "_"), _OVERVIEWS[picture.kind](picture, part)
        return
    several = len(results["settings"]) > 1
    for label, setting in results["settings"].items():
        method = picture.method or _default_method(experiment, setting)
        if method is not None and method in setting["sparsity"]:
            title = f"{results['title']}\n{picture.x_label} {label}" if several else ""
            figure = _BY_LAYER[picture.kind](title or results["title"], method, setting)
            yield label.replace(" ", "_") if several else "", figure


def _default_method(experiment: Experiment, setting: dict[str, Any]) -> str | None:
    names = list(setting["sparsity"])
    learned = [name for name in names if experiment.methods[name].kind == "learned"]
    return next(iter([*reversed(learned), *reversed(names)]), None)
