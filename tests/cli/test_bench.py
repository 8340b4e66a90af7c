import json

import pytest

import lowbit.bench

ROW = {
    "model": "m",
    "peer": "torch-fp32",
    "workload": "1x4",
    "seconds": 0.0125,
    "quartiles": [0.01, 0.02],
    "ratio": 1.0,
    "texts_per_second": 80.0,
    "cosine": 1.0,
    "first_seconds": 0.5,
    "disk_bytes": 1000,
    "resident_bytes": None,
    "quantize_seconds": None,
    "load_seconds": 0.1,
    "foreign": 0.5,
    "clean": False,
}


@pytest.fixture
def calls(monkeypatch):
    found = []

    def speed(model, **options):
        options.pop("progress")
        found.append((model, options))
        return [ROW, {"peer": "a", "absent": "x not installed"}, {"peer": "b", "workload": "1x4", "error": "E: bad"}]

    monkeypatch.setattr(lowbit.bench, "speed", speed)
    return found


def test_table_and_notes(run, calls):
    result = run("bench", "speed")
    assert calls == [(None, {"peers": None, "shapes": None, "texts": None, "threads": None, "rounds": 7, "work": None})]
    assert result.exit_code == 0
    assert "12.5" in result.stdout
    assert "a: absent, x not installed" in result.stdout
    assert "b failed (1x4): E: bad" in result.stdout
    assert "1x4: other processes kept 0.50 processors busy" in result.stdout


def test_options_and_files(run, calls, tmp_path):
    (tmp_path / "texts").write_text("one\ntwo\n")
    given = ["--peers", "ort, torch", "--shapes", "1x4", "--text", tmp_path / "texts", "--threads", 2, "--rounds", 3]
    for _ in range(2):
        run("bench", "speed", "dir", *given, "--json", tmp_path / "rows", "--plot", tmp_path / "plot.svg")
    model, options = calls[0]
    assert (model, options["peers"], options["shapes"]) == ("dir", ["ort", "torch"], ["1x4"])
    assert (options["texts"], options["threads"], options["rounds"]) == (["one", "two"], 2, 3)
    lines = (tmp_path / "rows").read_text().splitlines()
    assert len(lines) == 6  # appended
    assert json.loads(lines[0]) == ROW
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")


def test_bad_shapes_are_one_line(run):
    result = run("bench", "speed", "--shapes", "big", "--peers", "torch-fp32")
    assert result.exit_code == 2
