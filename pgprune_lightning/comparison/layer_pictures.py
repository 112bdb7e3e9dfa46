"""What masks do to each layer: their distances, and the shares that they remove."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgprune_lightning.comparison.picture_style import COLOURS, MARKERS, line_style, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KIND_TITLES = {
    "kv_group": "attention heads (KV groups)",
    "mlp_channel": "MLP channels",
    "attention": "attentions",
    "mlp": "MLPs",
    "layer": "layers",
}


def draw_hamming(title: str, method: str, setting: dict[str, Any]) -> Figure:
    """Distance of every other mask from one, layer by layer (paper, Fig. A3)."""
    figure, axes = new_figure(7.2, 4.2, title)
    for index, (name, distances) in enumerate(setting["hamming"][method].items()):
        axes.plot(
            distances,
            color=COLOURS[index % len(COLOURS)],
            linestyle=line_style(index),
            marker=MARKERS[index % len(MARKERS)],
            label=name,
        )
    _layer_axis(axes, len(setting["sparsity"][method][next(iter(setting["sparsity"][method]))]))
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"share of units unlike the mask of {method}")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def draw_sparsity(title: str, method: str, setting: dict[str, Any]) -> Figure:
    """What a mask removes of each layer (paper, Fig. 6)."""
    kinds = setting["sparsity"][method]
    figure, axes = new_figure(7.2, 3.6, title)
    width = 0.8 / len(kinds)
    for index, (kind, shares) in enumerate(kinds.items()):
        offset = (index - (len(kinds) - 1) / 2) * width
        places = [layer + offset for layer in range(len(shares))]
        axes.bar(places, shares, width, color=COLOURS[index], label=KIND_TITLES[kind])
    _layer_axis(axes, len(shares))
    axes.set_ylim(0, 1)
    axes.set_ylabel(f"share removed by {method}")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _layer_axis(axes: Axes, num_layers: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("layer")
    axes.set_xlim(-0.6, num_layers - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
