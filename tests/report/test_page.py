import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pgprune_lightning.report import distinct_names, read_run, report_page
from tests.report.conftest import WriteRun, made_summary

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Tags(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in ("src", "href", "action", "data"):
                self.addresses.append(str(value))
            if name == "id":
                self.ids.add(str(value))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(*folders: Path, included: dict[str, Any] | None = None) -> str:
    names = distinct_names(folders)
    records = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    return report_page(records, included or {}, "A report", "pgprune report ...")


def test_the_numbers_of_the_run_are_there(write_run: WriteRun) -> None:
    page = Tags(page_of(write_run()))
    said = ("10.50", "1,234", "56.25", "11.25", "77.00", "60.0 %", "5 min 12 s", "1.69 GB")
    for text in (*said, "Once upon", "a thyme.", "abc123", "153,600", "a machine, 2 cores"):
        assert text in page.text, text
    assert "MovingAverageBaseline(window=5)" in page.text
    assert "best 60.50, step 200" in page.text


def test_hostile_text_stays_text(write_run: WriteRun) -> None:
    summary = made_summary()
    for value in (summary, summary["provenance"], summary["sample"]):
        for name, inner in list(value.items()):
            if isinstance(inner, str):
                value[name] = HOSTILE
    summary["learned"]["other_texts"] = {HOSTILE: 3.0}
    config = {"model": {"base_model": HOSTILE, HOSTILE: HOSTILE, "keep_ratio": HOSTILE}}
    hostile = write_run("run", summary=summary, config=config, source=HOSTILE)
    (hostile / "wandb_run_id.txt").write_text(HOSTILE)
    content = {HOSTILE: HOSTILE, "list": [{HOSTILE: HOSTILE}]}
    runtimes = {HOSTILE: {"accepts": False, "reason": HOSTILE}}
    export = {"format": HOSTILE, "runtimes": runtimes}
    (hostile / "export.json").write_text(json.dumps(export))
    second = write_run(f"run{HOSTILE.replace('/', '')}")
    page = Tags(page_of(hostile, second, included={HOSTILE: content}))
    assert page.tags.keys() & {"script", "img", "iframe", "object", "link"} == set()
    assert HOSTILE in page.text


def test_no_secret_of_a_file_is_shown(write_run: WriteRun) -> None:
    token, key = "hf_" + "aB1" * 10, "0123456789abcdef" * 2 + "01234567"
    summary = made_summary()
    summary["provenance"]["command"] = f"fit --model.base_model https://me:{token}@host/x"
    summary["sample"]["learned"] = token
    config = {"model": {"base_model": token}, "logger": {"api_key": key}}
    first = write_run("a", summary=summary, config=config, source=f"org/{token}")
    (first / "other.json").write_text(json.dumps({"password": "hunter2", "list": [token]}))
    page = page_of(first, write_run("b"), included={token: {"a": token}})
    assert [secret for secret in (token, key, "hunter2") if secret in page] == []
    assert "***" in page


def test_nothing_is_fetched(write_run: WriteRun) -> None:
    page = page_of(write_run("a"), write_run("b"))
    found = Tags(page)
    assert {address[0] for address in found.addresses} == {"#"}
    assert {address[1:] for address in found.addresses} <= found.ids
    assert "default-src 'none'" in page
    assert not re.search(r"@import|url\((?!#)|href=\"(?!#)", page)


def test_a_run_with_nothing_but_its_configuration_is_reported(write_run: WriteRun) -> None:
    folder = write_run()
    for name in ("summary.json", "metrics.csv"):
        (folder / name).unlink()
    for plan in (folder / "plans").glob("*/plan.json"):
        plan.unlink()
    page = Tags(page_of(folder))
    assert "What is missing" in page.text
    assert "summary.json is missing" in page.text
    assert "plans/best is missing" in page.text


def test_a_summary_of_other_types_is_no_crash(write_run: WriteRun) -> None:
    odd: list[Any] = [None, "text", 3, [], {}, {"perplexity": "x", "other_texts": 3}]
    for value in odd:
        whole = dict.fromkeys(made_summary(), copy.deepcopy(value))
        assert "Outcome" in Tags(page_of(write_run(f"run{odd.index(value)}", summary=whole))).text


def test_runs_are_compared_by_what_differs(write_run: WriteRun) -> None:
    better = made_summary()
    better["learned"]["perplexity"] = 44.5
    config = {"model": {"base_model": "org/model", "keep_ratio": 0.5, "update": {"lr": 0.5}}}
    page = page_of(write_run("a"), write_run("b", summary=better, config=config))
    text = Tags(page).text
    assert "do not compare" not in text
    assert "model.update.lr0.020.5" in text
    (chosen,) = re.findall(
        r'<tr class="chosen"><th[^>]*>(\w+)</th>', page.partition("run0")[2][:9000]
    )
    assert chosen == "b"


def test_runs_that_do_not_compare_are_called_so(write_run: WriteRun) -> None:
    other = made_summary() | {"text": "another text"}
    text = Tags(page_of(write_run("a"), write_run("b", summary=other))).text
    assert "different test texts or lengths" in text
    unfinished = write_run("c")
    (unfinished / "summary.json").unlink()
    assert "Not finished: c." in Tags(page_of(write_run("d"), unfinished)).text


def test_results_of_other_commands_are_shown(write_run: WriteRun) -> None:
    folder = write_run()
    export = {
        "format": "gguf",
        "parameters": 8_000,
        "dense_parameters": 10_000,
        "bytes": 1_500_000,
        "dense_bytes": 3_000_000,
        "max_logit_difference": 1.25e-5,
        "runtimes": {
            "llama.cpp": {"accepts": True, "reason": None},
            "vLLM": {"accepts": False, "reason": "layer 3 has no attention"},
        },
    }
    (folder / "exports" / "gguf").mkdir(parents=True)
    (folder / "exports" / "gguf" / "export.json").write_text(json.dumps(export))
    (folder / "evaluation.json").write_text(json.dumps({"rows": [{"model": "m", "piqa": 0.625}]}))
    (folder / "broken.json").write_text("{")
    cells = {"learned": {"perplexity_128": 12.5}, "dense": {"perplexity_128": 3.25}}
    comparison = {"title": "Methods", "settings": {"0.7": {"methods": cells}}}
    text = Tags(page_of(folder, included={"compare.json": comparison})).text
    row = '<tr><th scope="row">measure9.128</th><td class="number">9.5</td>'
    measures = {f"measure{number}": {"128": number + 0.5} for number in range(20)}
    evaluation = {"models": [{"model": name} | measures for name in ("dense", "pruned")]}
    assert row in page_of(folder, included={"e.json": evaluation})
    evaluation |= {"protocol": {}, "models": [{"model": "m", "perplexity": {"wiki at 128": 7.5}}]}
    whole = Tags(page_of(folder, included={"e.json": evaluation})).text
    whole = whole.replace("\n", "")
    assert "Evaluatione.jsonmodelmperplexity: wiki at 1287.5" in whole
    for said in (
        *("Export: gguf", "80.0 % of dense", "50.0 % of dense", "1.25e-05"),
        *("layer 3 has no attention", "evaluation.json", "0.625", "Comparison: Methods", "12.5"),
        *("broken.json", "It is damaged"),
    ):
        assert said in text, said
