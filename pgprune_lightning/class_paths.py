"""Which classes a config may name: those of this program and of Lightning, and the user's own.

A class path is imported before its type is known, and importing is running code.
"""

from __future__ import annotations

import os
import sys

from jsonargparse import set_parsing_settings

from pgprune_lightning.errors import UserError

PACKAGES = ("callbacks", "lightning", "pgprune_lightning")
STUDIES = "research"
"""The package that the repository has besides; open where the program has imported it."""
PLUGINS = "PGPRUNE_PLUGINS"
"""The environment variable with further packages, separated by commas."""


def open_packages() -> tuple[str, ...]:
    """The packages whose classes a config may name."""
    named = (name.strip() for name in os.environ.get(PLUGINS, "").split(","))
    studies = [STUDIES] if STUDIES in sys.modules else []
    return (*PACKAGES, *studies, *(name for name in named if name))


def restrict_class_paths() -> None:
    """Let parsers import from no other packages, and make no object of what has no type.

    Raises:
        UserError: The environment variable names something else than packages.
    """
    try:
        set_parsing_settings(
            import_path_denylist=["*"],
            import_path_allowlist=list(open_packages()),
            instantiate_subclass_spec_in_any=False,
        )
    except ValueError as error:
        raise UserError(
            f"{PLUGINS}: must be names of packages, separated by commas, such as my_package; given "
            f"{os.environ[PLUGINS]!r}."
        ) from error
