"""Secrets in options are refused: what is configured reaches files, logs and dashboards.

A secret is recognised by its shape, where its issuer has given it one, or by the name beside it
(`WANDB_API_KEY=...`, `"password": "..."`). Commits, revisions and digests are hexadecimal too, so
bare hexadecimal digits are a secret only beside the name of a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pgprune_lightning.errors import UserError

_SHAPES = (
    r"://[^/\s@]+@",  # https://user:token@host
    r"[?&](?:token|access_token|api_key|key)=[^&\s]+",
    r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",  # Hugging Face
    r"\bwandb_v1_\w{20,}",
    r"\blocal-[0-9a-f]{40}\b",  # a W&B server of one's own
    r"\bgh[pousr]_[A-Za-z0-9]{20,}",  # GitHub
    r"\bgithub_pat_\w{20,}",
    r"\bglpat-[\w-]{20,}",  # GitLab
    # OpenAI, Anthropic and others: a long run of letters and digits tells it from a name.
    r"(?<![A-Za-z0-9])sk-(?:[A-Za-z0-9]+[-_])*(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{20,}[\w-]*",
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",  # AWS
    r"\bAIza[\w-]{35}",  # Google
    r"\bxox[abeprs]-[\w-]{10,}",  # Slack
    r"\bnpm_[A-Za-z0-9]{36}\b",
    r"\bpypi-[\w-]{50,}",
    r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+",  # JSON web token
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
)
_SHAPED = re.compile("|".join(_SHAPES))

_KEY = r"(?:api|access|secret|private)[-_]?key(?:[-_]?id)?|secret|token"
_LETTER_AND_DIGIT = r"(?=[^\s\"',;]*\d)(?=[^\s\"',;]*[A-Za-z])"
_BESIDE_NAMES = tuple(
    re.compile(
        rf"((?:(?:{names})[\"']?\s*[=:]\s*|--[\w.-]*(?:{names})\s+)[\"']?)({value})", re.IGNORECASE
    )
    for names, value in (
        (r"passw(?:or)?d|passphrase", r"(?!\$)[^\s\"',;]{4,}"),
        (_KEY, rf"{_LETTER_AND_DIGIT}[A-Za-z0-9+/=_.~-]{{16,}}"),
        (r"key|login", r"[0-9a-f]{40}\b"),
    )
)
"""Names, and what is a secret beside them: `NAME=...`, `"NAME": ...`, `--NAME ...`."""


def without_secrets(text: str) -> str:
    """The text with every user name, password and token in it replaced by stars."""
    text = _SHAPED.sub("***", text)
    for beside_name in _BESIDE_NAMES:
        text = beside_name.sub(r"\1***", text)
    return text


def hidden(data: Any, name: str = "") -> Any:
    """A copy of nested data in which every secret is replaced by stars.

    Args:
        data: What JSON or YAML can hold.
        name: Its name in what it belongs to.
    """
    if isinstance(data, dict):
        return {key: hidden(value, str(key)) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [hidden(value, name) for value in data]
    if isinstance(data, str):
        text = without_secrets(data)
        return "***" if text == data and _is_secret(name, data) else text
    return data


def refuse_secrets(config: Any, prefix: str = "") -> None:
    """Refuse options whose values hold a password or a token.

    Args:
        config: Options, nested.
        prefix: Name of the group that they belong to.

    Raises:
        UserError: If one does; the message names the option and not the secret.
    """
    for name, value in _values(config, prefix):
        if without_secrets(value) != value or _is_secret(name, value):
            raise UserError(
                f"{name}: holds a password or a token, which would reach files and logs. "
                "Give it by the environment, HF_TOKEN or WANDB_API_KEY, or log in once: "
                "hf auth login, wandb login."
            )


def refuse_secrets_in_arguments(arguments: Sequence[str]) -> None:
    """Refuse a command line that holds a password or a token, whatever its command.

    Args:
        arguments: What follows the program's name.

    Raises:
        UserError: If it does; the message names the option and not the secret.
    """
    option = "the command line"
    for argument in arguments:
        name, has_value, value = argument.partition("=")
        if not name.startswith("--"):
            refuse_secrets(argument, option)
        elif has_value:
            refuse_secrets(value, name)
        else:
            option = name


def _is_secret(name: str, value: str) -> bool:
    """Whether the value is one by the name beside it."""
    pair = f"{name.rpartition('.')[2]}: {value}"
    return any(beside_name.search(pair) for beside_name in _BESIDE_NAMES)


def _values(config: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(config, dict):
        for name, value in config.items():
            yield prefix, str(name)
            yield from _values(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _values(value, prefix)
    elif isinstance(config, str):
        yield prefix, config
