import json
import shutil
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import lowbit
from benchmarks import runtime_study as study
from benchmarks import tables
from lowbit.runtime import prepare
from tests.tiny import toy_data


def test_bytes_of_a_model_are_those_of_its_layout(tiny):
    loaded = lowbit.load(tiny.backbone("bert"))
    plain = sum(tensor.nbytes for tensor in (*loaded.parameters(), *loaded.buffers()))
    assert study.model_bytes(loaded) == plain
    layer = loaded.get_submodule("encoder.layer.0.attention.self.query")
    for mode, bits in (("latency", 8), ("memory", 4)):
        model = prepare(lowbit.load(tiny.backbone("bert")), mode=mode, backend="torch")
        rest = study.model_bytes(model)
        assert rest > layer.out_features * layer.in_features * bits // 8
    assert study.model_bytes(torch.nn.Linear(3, 2)) == 4 * 8


def test_a_small_run_makes_every_row_and_table(tiny, tmp_path, results, monkeypatch):
    monkeypatch.setattr(study, "FILE", results / "runtime.jsonl")
    monkeypatch.setattr(study, "LAYOUTS", {"latency": "torch", "memory": "torch"})
    monkeypatch.setattr(study, "SWITCHES", 4)
    monkeypatch.setattr(study, "minilm_folder", lambda: tiny.model("bert"))
    monkeypatch.setattr(study, "bert_base", lambda folder: shutil.copytree(tiny.model("bert"), folder))
    monkeypatch.setattr(study, "glue_data", lambda *_, **__: toy_data())
    monkeypatch.setattr(study, "intent_data", lambda train_rows, seed: toy_data(seed=seed))
    config = AutoConfig.from_pretrained(tiny.model("opt"))
    monkeypatch.setattr(study, "GENERATORS", {"tiny": (AutoModelForCausalLM, config)})
    monkeypatch.setattr(study, "TOKENS", 3)
    monkeypatch.setattr(sys, "argv", ["study", "--schemes", "w4", "--work", str(tmp_path / "work")])
    study.main()
    rows = [json.loads(line) for line in study.FILE.read_text(encoding="utf-8").splitlines()]
    assert [(row["kind"], row["layout"]) for row in rows] == [
        ("agreement", "latency"),
        ("agreement", "memory"),
        ("memory", "latency"),
        ("memory", "memory"),
        ("switch", "latency"),
        *[("generation", layout) for layout in ("float", "latency", "memory")] * 2,
    ]
    assert all(0 <= row["changed"] < row["rows"] / 2 for row in rows[:2])
    assert rows[3]["bytes"] < rows[2]["bytes"] < rows[2]["fp32_bytes"]
    assert rows[4]["seconds"] > 0
    assert [(row["batch"], row["ratio"]) for row in rows[5:] if row["layout"] == "float"] == [(1, 1.0), (8, 1.0)]
    assert len(tables.TABLES["generation"](results).splitlines()) == 4
    agreement = tables.TABLES["agreement"](results).splitlines()
    assert [line.split("|")[2].strip() for line in agreement[2:]] == ["latency", "memory"]
    assert "32 adapters" in tables.TABLES["layouts"](results)
