"""Studies that the repository has and an installed package has not: the folder `research/`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from pgprune_lightning.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def research_module(name: str) -> ModuleType:
    """Import a module of `research/`.

    Args:
        name: Its name there, such as `study`.

    Raises:
        UserError: If the program was installed without the repository.
    """
    if not (ROOT / "research" / "__init__.py").is_file():
        raise UserError(
            f"research/{name} is part of the repository and not of the installed package. Clone "
            "the repository, install it with pip install -e ., and run the command there."
        )
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return importlib.import_module(f"research.{name}")
