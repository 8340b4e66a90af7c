import json
import sys

import pytest
import zeroshot_perplexity
from rows import read_rows

from benchmarks import tables
from tests.benchmarks.test_tables import write
from tests.zeroshot.runs import RUN, TEXTS

ROW = {"model": "opt", "scheme": "w2a8", "strategy": "mse", "method": "rtn", "options": {}, "generator": None}
ROW |= {"seed": 0, "precision": "fp32", "setting": None}


@pytest.fixture
def study(tiny, tmp_path, monkeypatch):
    """Runs the study on a tiny OPT; gives all rows."""
    file = tmp_path / "zeroshot_perplexity.jsonl"
    monkeypatch.setattr(zeroshot_perplexity, "FILE", file)
    monkeypatch.setattr(zeroshot_perplexity, "WINDOW", 8)
    for path in (zeroshot_perplexity.WIKITEXT, zeroshot_perplexity.WIKIPEDIA):
        (tmp_path / "lm" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lm" / path).write_text("\n\n".join(TEXTS), encoding="utf-8")

    def run(*flags):
        given = ["--model", tiny.model("opt", "OPTForCausalLM"), "--work", tmp_path / "work", "--data-dir", tmp_path]
        given += ["--schemes", "w2a8", "--options", json.dumps(RUN | {"steps": 2, "evaluate_steps": 2}), *flags]
        monkeypatch.setattr(sys, "argv", ["zeroshot_perplexity.py", *map(str, given)])
        zeroshot_perplexity.main()
        return read_rows(file)

    return run


def test_every_missing_row_is_made_once(study, tmp_path):
    methods = ["float", "rtn", "real", "zsaq"]
    rows = study("--methods", *methods)
    assert [(row["method"], row["scheme"]) for row in rows] == [
        ("float", "float"),
        ("rtn", "w2a8"),
        ("real", "w2a8"),
        ("zsaq", "w2a8"),
    ]
    assert [row["generator"] is None for row in rows] == [True, True, True, False]
    assert len({row["perplexity"] for row in rows}) == 4
    assert all(row["perplexity"] > 1 for row in rows)
    assert len(study("--methods", *methods)) == 4
    assert not list((tmp_path / "work").iterdir())


def test_blank_lines_are_no_paragraphs(tmp_path):
    (tmp_path / "text").write_text("one\n\n  \ntwo\n", encoding="utf-8")
    assert zeroshot_perplexity.paragraphs(tmp_path / "text") == ["one", "two"]


def test_the_start_is_made_by_the_strategy(study):
    (rounded,) = study("--methods", "rtn")
    assert rounded["strategy"] == "mse"
    *_, other = study("--methods", "rtn", "--strategy", "minmax")
    assert other["strategy"] == "minmax"
    assert other["perplexity"] != rounded["perplexity"]


def test_the_table_has_a_line_per_method_and_start_in_the_last_setting(results):
    rows = [ROW | {"perplexity": 500.0}, ROW | {"scheme": "w4a8", "perplexity": 350.0}]
    rows += [ROW | {"strategy": "gptq", "perplexity": 450.0}, ROW | {"precision": "fp16", "perplexity": 501.0}]
    tried = ROW | {"method": "zsaq", "generator": "opt", "options": {"steps": 9}, "setting": "now"}
    rows += [tried | {"setting": "before", "seed": 2, "perplexity": 395.0}]
    rows += [tried | {"setting": "before", "precision": "bf16", "perplexity": 390.0}]
    rows += [tried | {"perplexity": 400.0}, tried | {"perplexity": 402.0, "seed": 1}]
    rows += [tried | {"perplexity": 391.0, "precision": "bf16"}]
    write(results / "zeroshot_perplexity.jsonl", rows)
    assert tables.TABLES["zeroshot_perplexity"](results).splitlines() == [
        "| Model | Start | Method | Generator | Changed | Run in | w2a8 | w4a8 |",
        "| --- | --- | --- | --- | --- | --- | ---: | ---: |",
        "| opt | mse | rtn | – | – | fp32 | 500.0 (n=1) | 350.0 (n=1) |",
        "| opt | gptq | rtn | – | – | fp32 | 450.0 (n=1) | – |",
        "| opt | mse | zsaq | opt | steps 9 | fp32 | 401.0 ± 1.4 (n=2) | – |",
        "| opt | mse | zsaq | opt | steps 9 | bf16 | 391.0 (n=1) | – |",
    ]
