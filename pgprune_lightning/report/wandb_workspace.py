"""The panels that belong on a W&B dashboard of pruning runs, and a workspace made of them.

`docs/wandb.md` explains the metrics. `wandb-workspaces` is an optional library (extra `wandb`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pgprune_lightning.errors import UserError
from pgprune_lightning.report.charts import KIND_NAMES

STEP = "trainer/global_step"
WORKSPACE_NAME = "Pruning"


@dataclass(frozen=True)
class Panel:
    """A panel to pin.

    Args:
        title: Its title.
        metrics: What it draws as lines.
        pattern: Or all metrics that this regular expression matches.
        pictures: Or the pictures that it shows.
        logarithmic: Whether its y axis is.
    """

    title: str
    metrics: tuple[str, ...] = ()
    pattern: str | None = None
    pictures: tuple[str, ...] = ()
    logarithmic: bool = False


def _pictures(what: str) -> tuple[str, ...]:
    return tuple(f"pictures/{what}/{kind}" for kind in KIND_NAMES)


PANELS = {
    "Outcome": (
        Panel("Validation perplexity", ("val/perplexity",), logarithmic=True),
        Panel("Loss and baseline", ("train/loss", "train/baseline")),
    ),
    "Policy": (
        Panel("Keep-probabilities", pictures=_pictures("keep_probabilities")),
        Panel("Sparsity by layer", pictures=_pictures("sparsity_by_layer")),
        Panel("Units near a bound", pattern="policy/near_(lower|upper)/.*"),
        Panel("Expected keep ratio", ("policy/expected_keep_ratio",)),
        Panel("Removed by the mask", pattern="sparsity/[a-z_]+$"),
    ),
    "Estimate": (
        Panel("Advantage", ("train/advantage",)),
        Panel("Spread of the losses", ("train/loss_spread",)),
        Panel("Norm of the gradient", ("train/gradient_norm",), logarithmic=True),
    ),
}
"""Panels by section, the first at the top."""


def check_workspace(where: str) -> None:
    """Refuse, before anything is sent, what cannot become a workspace.

    Args:
        where: `ENTITY/PROJECT`.

    Raises:
        UserError: If it names none, the library is missing, or W&B is set to be offline.
    """
    entity, _, project = where.partition("/")
    if not entity or not project or "/" in project:
        raise UserError(f"--wandb-workspace: must be ENTITY/PROJECT, given {where!r}.")
    _library()
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        raise UserError(
            f"--wandb-workspace: it is made on W&B's server, but WANDB_MODE is {mode!r}. Unset it "
            "on a machine with a network."
        )


def make_workspace(where: str) -> str:
    """Save a view with the panels in a project and return its address.

    Args:
        where: `ENTITY/PROJECT`, checked.

    Raises:
        UserError: If there is no login or no network, or W&B does not take it.
    """
    import wandb

    workspace = build_workspace(where)
    try:
        workspace.save_as_new_view()
    except (wandb.errors.Error, OSError, ValueError) as error:
        raise UserError(f"--wandb-workspace: W&B did not take it: {error}") from error
    return str(workspace.url)


def build_workspace(where: str) -> Any:
    """The workspace, not yet saved."""
    workspaces, reports = _library()
    entity, _, project = where.partition("/")
    sections = [
        workspaces.Section(
            name=name, panels=[_panel(reports, panel) for panel in panels], is_open=True
        )
        for name, panels in PANELS.items()
    ]
    settings = workspaces.WorkspaceSettings(x_axis=STEP)
    return workspaces.Workspace(
        entity=entity, project=project, name=WORKSPACE_NAME, sections=sections, settings=settings
    )


def _panel(reports: Any, panel: Panel) -> Any:
    if panel.pictures:
        return reports.MediaBrowser(title=panel.title, media_keys=list(panel.pictures))
    return reports.LinePlot(
        title=panel.title,
        x=STEP,
        y=list(panel.metrics),
        metric_regex=panel.pattern,
        log_y=panel.logarithmic,
    )


def _library() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise UserError(
            "--wandb-workspace: needs wandb-workspaces; install it with: pip install -c "
            "constraints.txt -e '.[wandb]'"
        ) from error
    return workspaces, reports
