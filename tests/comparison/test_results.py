"""Aggregation over seeds, tables and pictures, on results made by hand."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from pgprune_lightning.comparison import figures, tables
from pgprune_lightning.comparison.experiment import Experiment, Method, Picture
from pgprune_lightning.comparison.results import aggregated

PROVENANCE = {"device": "a machine", "commit": "abc", "command": "compare"}


def _trial(seed: int = 0, kind: str = "metric", **changes: Any) -> dict[str, Any]:
    trial = {
        "setting": "all",
        "kind": kind,
        "seed": seed,
        "perplexity_128": 20.0,
        "perplexity_2048": 40.0,
        "parameters": 700,
        "parameters_share": 0.7,
        "seconds": 3.0,
        "peak_memory_bytes": 2**20,
        "text": "stories",
        "max_positions": 512,
        "provenance": PROVENANCE,
    }
    return trial | changes


def _results(settings: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    by_layer = {"kv_group": [0.5, 0.0], "mlp_channel": [0.2, 0.4]}
    return {
        "title": "A | B [title]",
        "command": "compare",
        "provenance": PROVENANCE,
        "evaluation_lengths": [128, 2048],
        "errors": {},
        "settings": {
            label: {
                "methods": {name: aggregated(trials) for name, trials in methods.items()},
                "hamming": {"ours": {"wanda": [0.1, 0.3]}, "wanda": {"ours": [0.1, 0.3]}},
                "sparsity": {"ours": by_layer, "wanda": by_layer},
            }
            for label, methods in settings.items()
        },
    }


METHODS = {
    "dense": [_trial(kind="dense", perplexity_128=5.0)],
    "wanda": [_trial(perplexity_128=2000.0)],
    "ours": [_trial(0, "learned"), _trial(1, "learned", perplexity_128=24.0)],
}


def test_the_mean_and_the_sample_deviation_by_hand() -> None:
    seeds = [_trial(seed, perplexity_128=value) for seed, value in enumerate((20.0, 24.0, 31.0))]
    entry = aggregated(seeds)
    assert entry["perplexity_128"] == pytest.approx(25.0)
    assert entry["deviation"]["perplexity_128"] == pytest.approx(((25 + 1 + 36) / 2) ** 0.5)
    assert entry["deviation"]["parameters"] == 0
    assert [seed["perplexity_128"] for seed in entry["seeds"]] == [20.0, 24.0, 31.0]
    assert [seed["seed"] for seed in entry["seeds"]] == [0, 1, 2]
    assert (entry["parameters"], type(entry["parameters"])) == (700, int)
    assert entry["max_positions"] == 512
    assert "provenance" not in entry


def test_one_seed_has_no_deviation_and_an_overflow_no_mean() -> None:
    assert aggregated([_trial()])["deviation"] == {}
    entry = aggregated([_trial(0), _trial(1, perplexity_128=None)])
    assert entry["perplexity_128"] is None
    assert entry["deviation"]["perplexity_128"] is None
    assert entry["perplexity_2048"] == 40.0


def test_accuracies_by_task_are_averaged_over_seeds_in_their_groups() -> None:
    seeds = [
        _trial(
            seed,
            zero_shot={"piqa": piqa, "winogrande": 0.5},
            zero_shot_normalized={"piqa": piqa, "winogrande": None},
            zero_shot_average=(piqa + 0.5) / 2,
        )
        for seed, piqa in enumerate((0.2, 0.6))
    ]
    entry = aggregated(seeds)
    assert entry["zero_shot"] == pytest.approx({"piqa": 0.4, "winogrande": 0.5})
    assert entry["zero_shot_normalized"]["winogrande"] is None
    assert entry["zero_shot_average"] == pytest.approx(0.45)
    assert entry["deviation"]["zero_shot"]["piqa"] == pytest.approx(0.08**0.5)
    assert entry["seeds"][1]["zero_shot"]["piqa"] == 0.6

    results = _results({"all": {"ours": seeds}})
    results |= {"zero_shot": ["piqa", "winogrande"], "zero_shot_limit": None}
    text = tables.markdown(results)
    assert "| piqa | winogrande | zero-shot average |" in text
    assert "| 40.0 % ± 28.3 % | 50.0 % | 45.0 % ± 14.1 % |" in text
    (line, _) = csv.DictReader(io.StringIO(tables.csv_text(results)))
    assert line["zero_shot.piqa"] == "0.2"


def test_latency_has_a_table_of_its_own() -> None:
    shape = {"batch_size": 4, "sequence_length": 2048, "repetitions": 3}
    numbers = {"seconds": 0.01234, "parameter_bytes": 3 * 2**20, "peak_memory_bytes": None}
    results = _results({"all": {"ours": [_trial(latency=numbers)]}}) | {"latency": shape}
    text = tables.markdown(results)
    assert "|  | latency | memory of weights |" in text
    assert "| ours | 12.3 ms | 3.15 MB |" in text
    assert "median of 3 forward passes of the cut model over 4 x 2,048 tokens" in text


def test_one_setting_is_one_table() -> None:
    text = tables.markdown(_results({"all": METHODS}))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == (
        "|  | perplexity at 128 | perplexity at 2048 (*) | parameters | of dense | time to make "
        "| peak memory |"
    )
    assert "| wanda | 2,000 | 40.00 | 700 | 70.0 % | 3.0 s | 1.05 MB |" in lines
    assert any(line.startswith("| ours | 22.00 ± 2.83 | 40.00 |") for line in lines)
    assert "made for 512 positions" in text
    assert "over seeds" in text


def test_several_settings_are_a_table_for_each_value() -> None:
    second = {name: trials for name, trials in METHODS.items() if name != "dense"}
    text = tables.markdown(_results({"0.8": METHODS, "0.6": second}))
    assert "## perplexity at 128\n\n|  | 0.8 | 0.6 |\n" in text
    assert "| dense | 5.00 | – |" in text


def test_an_overflow_is_named() -> None:
    text = tables.markdown(_results({"all": {"wanda": [_trial(perplexity_128=None)]}}))
    assert "| wanda | overflow |" in text


def test_csv_has_a_line_for_each_seed() -> None:
    lines = list(csv.DictReader(io.StringIO(tables.csv_text(_results({"all": METHODS})))))
    assert [(line["method"], line["seed"]) for line in lines] == [
        *(("dense", "0"), ("wanda", "0")),
        *(("ours", "0"), ("ours", "1")),
    ]
    assert lines[3]["perplexity_128"] == "24.0"


def test_pictures_show_what_they_are_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    methods = {"dense": "dense", "wanda": "metric", "ours": "learned"}
    kinds = ("bars", "lines", "hamming", "sparsity")
    experiment = Experiment(
        title="",
        recipe=(),
        options={},
        settings={},
        methods={name: Method(kind, {}) for name, kind in methods.items()},  # type: ignore[arg-type]
        seeds=(0,),
        evaluation_lengths=(128,),
        evaluation_tokens=None,
        zero_shot=(),
        pictures=tuple(Picture(kind, "perplexity_128", "keep ratio", None) for kind in kinds),
    )
    results = _results({"0.9": METHODS, "0.8": METHODS, "0.7": {"ours": METHODS["ours"]}})
    names = figures.draw(experiment, results, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    layers = [
        f"picture{n}_{kind}_{s}"
        for n, kind in ((3, "hamming"), (4, "sparsity"))
        for s in ("0.9", "0.8", "0.7")
    ]
    stems = ["picture1_bars", "picture2_lines", *layers]
    assert names == [f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")]
    before = {name: (tmp_path / name).read_bytes() for name in names}
    figures.draw(experiment, results, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in names} == before


def test_lines_fall_to_the_right_as_the_file_has_them() -> None:
    pytest.importorskip("matplotlib")
    picture = Picture("lines", "perplexity_128", "keep ratio", None)
    figure = figures.draw_lines(picture, _results({"0.9": METHODS, "0.5": METHODS}))
    (axes,) = figure.axes
    left, right = axes.get_xlim()
    assert left > right
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "perplexity at 128 tokens"
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == list(METHODS)
