import json

from benchmarks import tables

ROW = {
    "model": "m",
    "threads": 2,
    "cpu": "c",
    "peer": "torch-fp32",
    "workload": "1x4",
    "seconds": 0.0125,
    "ratio": 1.0,
    "clean": True,
    "version": "2",
    "cosine": 1.0,
    "disk_bytes": 2**20,
    "quantize_cpu_seconds": None,
    "load_seconds": 0.25,
    "date": "2026-01-01",
}


def write(results, *changes):
    (results / "speed.jsonl").write_text("".join(json.dumps(ROW | change) + "\n" for change in changes))


def test_a_cell_per_workload(results):
    write(
        results,
        {"seconds": 9.0, "date": "2025-01-01"},
        {"resident_bytes": 3 * 2**20},
        {"workload": "2x4", "seconds": 0.05},
        {"peer": "ours", "seconds": 0.005, "ratio": 2.5},
        {"peer": "loaded", "clean": False},
        {"seconds": 7.0, "clean": False, "date": "2026-02-01"},  # does not hide the clean one
    )
    lines = tables.TABLES["speed"](results).splitlines()
    assert lines[0] == "| Model | Peer | 1x4 | 2x4 | Threads | Processor |"
    assert lines[2:] == [
        "| m | torch-fp32 | 12.5 ms (1.00×) | 50.0 ms (1.00×) | 2 | c |",
        "| m | ours | 5.0 ms (2.50×) | – | 2 | c |",
    ]


def test_costs_come_from_the_row_that_has_them(results):
    write(results, {"workload": "2x4", "cosine": 0.5}, {"resident_bytes": 3 * 2**20})
    (line,) = tables.TABLES["speed_cost"](results).splitlines()[2:]
    assert line == "| m | torch-fp32 | 2 | 1.00000 | 1.0 MiB | 3.0 MiB | – | 0.25 s |"


def test_no_rows(results):
    assert tables.TABLES["speed"](results).splitlines()[-1] == "| – | – | – | – |"
