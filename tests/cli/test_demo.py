import json
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    found = []

    def run_demo(output=None, data_dir=None, progress=None):
        found.append((output, data_dir))
        progress(1, 1, "done")
        print("noise")
        return [{"method": "w4", "accuracy": 0.9}]

    monkeypatch.setattr("lowbit.demo.run_demo", run_demo)
    return found


def test_json_is_all_there_is_on_standard_output(run, calls):
    result = run("demo", "-o", "out", "--data-dir", "data", "--json")
    assert json.loads(result.stdout) == [{"method": "w4", "accuracy": 0.9}]
    assert calls == [(Path("out"), Path("data"))]


def test_table(run):
    output = run("demo").stdout
    assert "accuracy" in output
    assert "0.9" in output
