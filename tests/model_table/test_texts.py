"""Texts by short names, by places, and by names of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgprune_lightning.data.documents import read_documents
from pgprune_lightning.model_table.texts import text_of


def test_presets_are_the_hubs_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGPRUNE_DATA", raising=False)
    wikitext, c4 = text_of("wikitext2"), text_of("validation=c4")
    assert (wikitext.path, wikitext.name, wikitext.split) == (
        *("Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
    )
    assert (wikitext.join, wikitext.title) == ("blank_line", "WikiText-2 test")
    assert (c4.path, c4.split, c4.title) == ("allenai/c4", "validation", "validation")
    assert wikitext.local_files() is None
    assert c4.local_files() is None


def test_wikitext_is_read_where_it_lies(
    pgprune_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPRUNE_DATA", str(pgprune_data))
    file = pgprune_data / "wikitext2" / "wiki.test.raw"
    assert text_of("wikitext2").local_files() == (file,)
    own = text_of(f"own={file}")
    assert (own.title, own.join, own.local_files()) == ("own", "blank_line", (file,))


def test_own_files(tmp_path: Path) -> None:
    (tmp_path / "a=b.txt").write_text("some words")
    text = text_of(str(tmp_path / "a=b.txt"))
    assert (text.title, text.join) == ("a=b", "end_token")
    assert list(read_documents(text)["text"]) == ["some words"]
    assert text_of("org/texts").split == "test"
