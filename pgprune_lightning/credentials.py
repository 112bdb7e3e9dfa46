"""Secrets in options are refused: what is configured reaches files, logs and dashboards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pgprune_lightning.errors import UserError

_SECRETS = re.compile(
    r"://[^/\s@]+@"  # https://user:token@host
    r"|\bhf_[A-Za-z0-9]{20,}"
    r"|\bwandb_v1_\w{20,}"
    r"|[?&](?:token|access_token|api_key|key)=[^&\s]+"
)


def without_secrets(text: str) -> str:
    """The text with every user name, password and token in it replaced by stars."""
    return _SECRETS.sub("***", text)


def refuse_secrets(config: Any, prefix: str = "") -> None:
    """Refuse options whose values hold a password or a token.

    Args:
        config: Options, nested.
        prefix: Name of the group that they belong to.

    Raises:
        UserError: If one does; the message names the option and not the secret.
    """
    for name, value in _values(config, prefix):
        if _SECRETS.search(value):
            raise UserError(
                f"{name}: holds a password or a token, which would reach config.yaml and logs. "
                "Give it by the environment, HF_TOKEN or WANDB_API_KEY, or log in once: "
                "hf auth login, wandb login."
            )


def _values(config: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(config, dict):
        for name, value in config.items():
            yield from _values(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _values(value, prefix)
    elif isinstance(config, str):
        yield prefix, config
