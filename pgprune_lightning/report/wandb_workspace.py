"""The panels of a W&B dashboard of pruning runs, and a workspace made of them.

`docs/wandb.md` explains the metrics. `wandb-workspaces` is an optional library (extra `wandb`).
"""

from __future__ import annotations

import os
from typing import Any

from pgprune_lightning.errors import UserError
from pgprune_lightning.report.charts import KIND_NAMES

STEP = "trainer/global_step"
WORKSPACE_NAME = "Pruning"


def _pictures(name: str) -> list[str]:
    return [f"pictures/{name}/{kind}" for kind in KIND_NAMES]


PANELS: dict[str, dict[str, dict[str, Any]]] = {
    "Outcome": {
        "Validation perplexity": {"y": ["val/perplexity"], "log_y": True},
        "Loss and baseline": {"y": ["train/loss", "train/baseline"]},
    },
    "Policy": {
        "Keep-probabilities": {"media_keys": _pictures("keep_probabilities")},
        "Sparsity by layer": {"media_keys": _pictures("sparsity_by_layer")},
        "Units near a bound": {"metric_regex": "policy/near_(lower|upper)/.*"},
        "Expected keep ratio": {"y": ["policy/expected_keep_ratio"]},
        "Removed by the mask": {"metric_regex": "sparsity/[a-z_]+$"},
    },
    "Estimate": {
        "Advantage": {"y": ["train/advantage"]},
        "Spread of the losses": {"y": ["train/loss_spread"]},
        "Norm of the gradient": {"y": ["train/gradient_norm"], "log_y": True},
    },
}
"""Arguments of each panel by its title, by section; the first section is at the top.

A panel with `media_keys` is a `MediaBrowser`, any other a `LinePlot`.
"""


def check_workspace(where: str) -> None:
    """Refuse a workspace that cannot be made, before anything is sent.

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

    def panel(title: str, arguments: dict[str, Any]) -> Any:
        if "media_keys" in arguments:
            return reports.MediaBrowser(title=title, **arguments)
        return reports.LinePlot(title=title, x=STEP, **arguments)

    sections = [
        workspaces.Section(name=name, panels=[panel(*item) for item in of.items()], is_open=True)
        for name, of in PANELS.items()
    ]
    entity, _, project = where.partition("/")
    settings = workspaces.WorkspaceSettings(x_axis=STEP)
    return workspaces.Workspace(
        entity=entity, project=project, name=WORKSPACE_NAME, sections=sections, settings=settings
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
