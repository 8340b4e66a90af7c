import json
import sys

import pytest
import zeroshot_backbone
from rows import read_rows

from benchmarks import tables
from tests.benchmarks.test_tables import write
from tests.tiny import toy_data
from tests.zeroshot.runs import RUN

ROW = {
    "model": "minilm",
    "scheme": "w2",
    "backbone": "rtn",
    "generator": None,
    "task": "cola",
    "seed": 0,
    "precision": "bf16",
    "setting": None,
    "score": 0.2,
}


@pytest.fixture
def study(tiny, tmp_path, monkeypatch):
    """Runs the study on the toy task; gives all rows."""
    file = tmp_path / "zeroshot_backbone.jsonl"
    monkeypatch.setattr(zeroshot_backbone, "RESULT", file)
    monkeypatch.setattr(zeroshot_backbone, "best_rate", lambda *_: 1e-2)
    monkeypatch.setattr(zeroshot_backbone, "task_data", lambda *_: toy_data())
    monkeypatch.setitem(zeroshot_backbone.EPOCHS, "sst2", 1)
    monkeypatch.setitem(zeroshot_backbone.CHOSEN, "outliers", {"budget": 0.1})

    def run(*flags):
        given = ["--model", tiny.model("bert"), "--work", tmp_path / "work", "--tasks", "sst2"]
        given += ["--options", json.dumps(RUN | {"steps": 2, "evaluate_steps": 2}), *flags]
        monkeypatch.setattr(sys, "argv", ["zeroshot_backbone.py", *map(str, given)])
        zeroshot_backbone.main()
        return read_rows(file)

    return run


def test_backbones_are_made_once_and_tuned_alike(study, tmp_path):
    rows = study("--backbones", "rtn", "random")
    assert [(row["backbone"], row["rate"], row["generator"]) for row in rows] == [
        ("rtn", 1e-2, None),
        ("random", 1e-2, None),
    ]
    assert rows[0]["trained_share"] == rows[1]["trained_share"] > 0
    assert (rows[0]["options"], rows[1]["options"]["steps"]) == ({}, 2)
    weights = [tmp_path / "work" / name / "model.safetensors" for name in ("rtn-w2", "random-w2")]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    assert len(study("--backbones", "rtn", "random")) == 2
    assert len(study("--backbones", "rtn", "--seeds", "0", "1")) == 3
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["random-w2", "rtn-w2"]


def test_the_table_has_a_line_per_backbone(results):
    rows = [ROW, ROW | {"seed": 1, "score": 0.22}, ROW | {"task": "sst2", "score": 0.8}]
    trained = ROW | {"backbone": "zsaq", "generator": "opt"}
    rows += [trained | {"setting": "before", "score": 0.3}, trained | {"setting": "now"}]
    write(results / "zeroshot_backbone.jsonl", rows)
    assert tables.TABLES["zeroshot_backbone"](results).splitlines() == [
        "| Model | Bits | Backbone | Generator | Run in | cola | sst2 | Mean |",
        "| --- | --- | --- | --- | --- | ---: | ---: | ---: |",
        "| minilm | w2 | rtn | – | bf16 | 21.0 ± 1.4 (n=2) | 80.0 (n=1) | 50.5 |",
        "| minilm | w2 | zsaq | opt | bf16 | 20.0 (n=1) | – | – |",
    ]
