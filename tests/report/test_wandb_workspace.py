import builtins
import re
from typing import Any

import pytest

from pgprune_lightning.errors import UserError
from pgprune_lightning.report.wandb_workspace import PANELS, build_workspace, check_workspace


@pytest.mark.parametrize("where", ["project", "/project", "entity/", "a/b/c"])
def test_a_workspace_needs_entity_and_project(where: str) -> None:
    with pytest.raises(UserError, match="ENTITY/PROJECT"):
        check_workspace(where)


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("wandb_workspaces"):
            raise ImportError(name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=re.escape("'.[wandb]'")):
        check_workspace("me/pruning")


def test_offline_there_is_no_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match="WANDB_MODE is 'offline'"):
        check_workspace("me/pruning")


def test_the_workspace_holds_the_panels() -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra wandb is not installed")
    workspace = build_workspace("me/pruning")
    assert (workspace.entity, workspace.project) == ("me", "pruning")
    titles = {
        section.name: [panel.title for panel in section.panels] for section in workspace.sections
    }
    assert titles == {name: list(panels) for name, panels in PANELS.items()}
    assert workspace.settings.x_axis == "trainer/global_step"
    workspace._to_model()  # what would be sent
