"""Texts by the names that tables give them, and by their places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pgprune_lightning.data.text_source import TextSource, file_format
from pgprune_lightning.model_table.naming import split_name

PRESETS = {
    "wikitext2": TextSource(
        "Salesforce/wikitext",
        name="wikitext-2-raw-v1",
        split="test",
        local_copy="${PGPRUNE_DATA}/wikitext2/wiki.test.raw",
        label="WikiText-2 test",
        join="blank_line",
    ),
    "c4": TextSource(
        "allenai/c4",
        data_files="en/c4-validation.00000-of-00008.json.gz",
        split="validation",
        label="C4 validation",
    ),
}
"""Texts of the hub by a short name."""


def text_of(given: str) -> TextSource:
    """Find how a text is read.

    Args:
        given: A name of `PRESETS`; a file, folder, glob, `package:DIST/FOLDER` or hub dataset, of
            which the split `test` is read; or NAME=ONE_OF_THESE. A WikiText `.raw` file is read
            whole, as the literature does; of others each document ends with the end token.
    """
    name, location = split_name(given)
    source = PRESETS.get(location) or TextSource(
        location,
        split="test",
        join="blank_line" if file_format(Path(location)) == "wikitext" else "end_token",
    )
    return source if name is None else replace(source, label=name)
