from pathlib import Path
from typing import Any

import pytest

from pgprune_lightning.comparison import figures, tables
from pgprune_lightning.comparison.experiment import Experiment, Method, Picture
from pgprune_lightning.comparison.results import aggregated, grouped


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        (
            ["A-7B 0.7", "A-7B 0.5", "B 13B 0.7"],
            {"A-7B": ["0.7", "0.5"], "B 13B": ["0.7"]},
        ),
        (["0.7", "0.5"], {"": ["0.7", "0.5"]}),
        (["A 0.7", "A 0.5"], {"": ["A 0.7", "A 0.5"]}),
        (["A 0.7", "B x"], {"": ["A 0.7", "B x"]}),
        (["A 0.7", "0.7"], {"": ["A 0.7", "0.7"]}),
        ([], {"": []}),
    ],
)
def test_settings_are_grouped_by_the_name_before_their_number(
    labels: list[str], groups: dict[str, list[str]]
) -> None:
    settings = {label: {"of": label} for label in labels}
    found = grouped(settings)
    assert {name: list(part) for name, part in found.items()} == groups
    whole = [setting for part in found.values() for setting in part.values()]
    assert whole == list(settings.values())


def _results(labels: list[str]) -> dict[str, Any]:
    numbers = {"perplexity_128": 20.0, "parameters": 700, "parameters_share": 0.7, "seconds": 3.0}
    other = {"peak_memory_bytes": 2**20, "text": "stories", "max_positions": 512}
    trial = {"kind": "learned", "seed": 0, **numbers, **other}
    provenance = {"device": "a machine", "commit": "abc"}
    return {
        "title": "Two models",
        "command": "compare",
        "provenance": provenance,
        "evaluation_lengths": [128],
        "errors": {},
        "settings": {label: {"methods": {"ours": aggregated([trial])}} for label in labels},
    }


def test_every_group_has_its_table() -> None:
    text = tables.markdown(_results(["A 0.7", "A 0.5", "B 0.7", "B 0.5"]))
    assert "## A, perplexity at 128\n\n|  | 0.7 | 0.5 |\n" in text
    assert "## B, perplexity at 128\n\n|  | 0.7 | 0.5 |\n" in text


def test_every_group_has_its_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    experiment = Experiment(
        title="",
        recipe=(),
        options={},
        settings={},
        methods={"ours": Method("learned", {})},
        seeds=(0,),
        evaluation_lengths=(128,),
        evaluation_tokens=None,
        zero_shot=(),
        pictures=(Picture("lines", "perplexity_128", "keep ratio", None),),
    )
    names = figures.draw(experiment, _results(["A b 0.7", "A b 0.5", "C 0.7"]), tmp_path)
    assert names == [f"picture1_lines_{g}.{s}" for g in ("A_b", "C") for s in ("png", "svg")]
    assert "A b" in (tmp_path / names[1]).read_text()
