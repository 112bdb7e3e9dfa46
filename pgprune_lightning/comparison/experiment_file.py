"""Reading an experiment file: YAML in, an `Experiment` out, or one line that says what is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import yaml

from pgprune_lightning.comparison.experiment import (
    Experiment,
    Method,
    MethodKind,
    Options,
    Picture,
    PictureKind,
    nested,
)
from pgprune_lightning.comparison.experiment_extras import (
    check_finetune,
    read_finetune,
    read_latency,
    read_limit,
    read_zero_shot,
)
from pgprune_lightning.comparison.yaml_values import (
    choice,
    integers,
    mapping,
    optional_text,
    text,
    texts,
)
from pgprune_lightning.credentials import refuse_secrets
from pgprune_lightning.errors import UserError

KEYS = (
    "title",
    "recipe",
    "options",
    "settings",
    "methods",
    "seeds",
    "evaluation_lengths",
    "evaluation_tokens",
    "zero_shot",
    "zero_shot_folder",
    "zero_shot_limit",
    "latency",
    "finetune",
    "picture",
)
ONLY_SETTING = "all"
"""Label of the one setting of a file that names none."""

_SAFE_NAME = re.compile(r"[A-Za-z0-9._ +-]*[A-Za-z0-9_+-][A-Za-z0-9._ +-]*")


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, which YAML lets the later one win."""


def _unique_keys(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{key!r} is given twice, at line {node.start_mark.line + 1} on.")
    return dict(loader.construct_mapping(node, deep=True))


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _unique_keys)


def load_experiment(
    path: Path,
    *,
    options: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    settings: Sequence[str] | None = None,
) -> Experiment:
    """Read an experiment file; its cells' options are checked by `cells_of`.

    Args:
        path: The YAML file.
        options: Options of `fit` over the file's own `options`, for every cell.
        seeds: Seeds in place of the file's.
        settings: Which of the file's settings are run; None: all.

    Raises:
        UserError: If the file cannot be read, or has an unknown key or a wrong value, or no such
            setting.
    """
    try:
        experiment = _experiment(_read(path), path.parent, dict(options or {}), seeds)
        return experiment if settings is None else _only(experiment, settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(), _StrictLoader)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"is no YAML: {error}") from error
    fields = mapping(data, "the file", KEYS)
    refuse_secrets(fields)
    missing = [key for key in ("title", "recipe", "methods") if not fields.get(key)]
    if missing:
        raise UserError(f"{', '.join(missing)}: missing; every experiment file needs it.")
    return fields


def _experiment(
    data: dict[str, Any], folder: Path, over: Options, seeds: Sequence[int] | None
) -> Experiment:
    settings = _named(data.get("settings") or {ONLY_SETTING: {}}, "settings")
    methods = _named(data["methods"], "methods")
    lengths = integers(data.get("evaluation_lengths", [128, 2048]), "evaluation_lengths", 2)
    experiment = Experiment(
        title=text(data["title"], "title"),
        recipe=_recipe(data["recipe"], folder),
        options=_overlaid(nested(mapping(data.get("options"), "options"), "options"), over),
        settings={
            label: nested(mapping(options, f"settings.{label}"), f"settings.{label}")
            for label, options in settings.items()
        },
        methods={
            name: _method(method, f"methods.{name}", folder) for name, method in methods.items()
        },
        seeds=integers(data.get("seeds", [0]) if seeds is None else seeds, "seeds", 0),
        evaluation_lengths=lengths,
        evaluation_tokens=_tokens(data.get("evaluation_tokens"), max(lengths)),
        zero_shot=read_zero_shot(data.get("zero_shot")),
        pictures=(),
        zero_shot_folder=optional_text(data.get("zero_shot_folder"), "zero_shot_folder"),
        zero_shot_limit=read_limit(data.get("zero_shot_limit")),
        latency=read_latency(data.get("latency")),
        finetune=read_finetune(data.get("finetune")),
    )
    check_finetune(experiment)
    pictures = _pictures(data.get("picture"), experiment)
    return replace(experiment, pictures=pictures)


def _only(experiment: Experiment, labels: Sequence[str]) -> Experiment:
    """Leave some settings, in the file's order."""
    unknown = [label for label in labels if label not in experiment.settings]
    if unknown or not labels:
        raise UserError(
            f"settings: it has no {unknown[0] if unknown else 'empty choice'}; give some of "
            f"{', '.join(experiment.settings)}."
        )
    chosen = {name: value for name, value in experiment.settings.items() if name in labels}
    return replace(experiment, settings=chosen)


def _overlaid(options: Options, over: Options) -> Options:
    """Lay options of the command line over the file's; a value replaces a value."""
    result = dict(options)
    for key, value in nested(over, "options").items():
        inner = result.get(key)
        both = isinstance(value, dict) and isinstance(inner, dict)
        result[key] = _overlaid(inner or {}, value) if both else value
    return result


def _named(value: Any, where: str) -> dict[str, Any]:
    """A mapping whose keys become labels, and names of folders."""
    result: dict[str, Any] = {}
    folders: dict[str, str] = {}
    for key, item in mapping(value, where).items():
        name = str(key)
        if isinstance(key, bool) or not _SAFE_NAME.fullmatch(name):
            raise UserError(
                f"{where}: {name!r} becomes the name of a folder; use letters, digits, spaces and "
                "any of . _ + - only."
            )
        other = folders.setdefault(folder_name(name).casefold(), name)
        if other != name or name in result:
            raise UserError(f"{where}: {other!r} and {name!r} would share a folder; rename one.")
        result[name] = item
    return result


def folder_name(name: str) -> str:
    """The folder of a setting or method."""
    return name.replace(" ", "_")


def _recipe(value: Any, folder: Path, where: str = "recipe") -> tuple[Path, ...]:
    names = texts([value] if isinstance(value, str) else value, where)
    paths = tuple(folder / name for name in names)
    for path in paths:
        if not path.is_file():
            raise UserError(f"{where}: there is no file {path}.")
    return paths


def _method(value: Any, where: str, folder: Path) -> Method:
    fields = mapping(value, where, ("kind", "recipe", "options", "finetune"))
    kind = choice(fields.get("kind"), get_args(MethodKind), f"{where}.kind")
    options = mapping(fields.get("options"), f"{where}.options")
    finetune = fields.get("finetune")
    if finetune is not None and not isinstance(finetune, bool):
        raise UserError(f"{where}.finetune: must be true or false, given {finetune!r}.")
    recipe = _recipe(fields.get("recipe"), folder, f"{where}.recipe")
    return Method(kind, nested(options, f"{where}.options"), finetune, recipe)


def _pictures(value: Any, experiment: Experiment) -> tuple[Picture, ...]:
    if value is None:
        return ()
    entries = value if isinstance(value, list) else [value]
    return tuple(_picture(entry, experiment) for entry in entries)


def _picture(value: Any, experiment: Experiment) -> Picture:
    fields = mapping(value, "picture", ("kind", "value", "x_label", "method"))
    kind = choice(fields.get("kind"), get_args(PictureKind), "picture.kind")
    perplexities = [f"perplexity_{length}" for length in experiment.evaluation_lengths]
    others = ["parameters", "parameters_share", "seconds", "peak_memory_bytes"]
    others += ["zero_shot_average"] if experiment.zero_shot else []
    shown = fields.get("value", perplexities[0])
    masks = [name for name, method in experiment.methods.items() if method.has_mask]
    method = fields.get("method")
    return Picture(
        kind=kind,
        value=choice(shown, [*perplexities, *others], "picture.value"),
        x_label=text(fields.get("x_label", "setting"), "picture.x_label"),
        method=None if method is None else choice(method, masks, "picture.method"),
    )


def _tokens(value: Any, longest: int) -> int | None:
    return None if value is None else integers([value], "evaluation_tokens", longest)[0]
