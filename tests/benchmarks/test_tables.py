import json

import pytest

from benchmarks import tables

SIZE = {
    "geometry": "bert-base",
    "scheme": "w4",
    "embeddings": "8",
    "effective_bits": 4.2,
    "model_bits": 5.1,
    "file_bytes": 64 * 2**20,
    "fp32_bytes": 416 * 2**20,
    "ratio": 0.1538,
}
STAGE1 = {
    "geometry": "bert-base",
    "strategy": "mse",
    "scheme": "w4",
    "seconds": 12.34,
    "copy_seconds": 1.2,
    "ratio": 10.28,
    "peak_private_mib": 301.2,
    "largest_tensor_mib": 89.4,
    "memory_ratio": 3.37,
    "threads": 1,
    "cpu": "a processor",
}
BUDGET = {
    "model": "minilm",
    "task": "stsb",
    "label": "mixed",
    "budget": "bits 3.2",
    "effective_bits": 3.1879,
    "float": 0.867,
    "spearman": 0.8665,
    "loss": 0.0005,
    "distance": 0.1,
}
PERPLEXITY = {
    "model": "opt",
    "text": "wiki",
    "method": "untuned",
    "scheme": "w4",
    "window": 256,
    "stride": 128,
    "seed": 0,
    "effective_bits": 4.2234,
    "model_bits": 6.5,
    "perplexity": 33.333,
    "date": "2026-01-01",
}
EMPTY = "before\n<!-- table:size -->\n<!-- /table -->\nafter\n"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def body(table):
    """Cells of the lines below the headings."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize("name", ["size", "stage1", "budgets", "perplexity"])
def test_a_missing_file_gives_a_line_of_dashes(results, name):
    table = tables.TABLES[name](results)
    assert {cell for line in body(table) for cell in line} == {"–"}
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_newest_row_wins_by_date_not_by_position_and_the_later_line_between_equal_dates(results):
    rows = [PERPLEXITY | {"date": "2026-02-01", "perplexity": 7.0}, PERPLEXITY]
    write(results / "perplexity.jsonl", rows)
    assert body(tables.perplexity(results))[0][-2] == "7.0"
    write(results / "perplexity.jsonl", [PERPLEXITY, PERPLEXITY | {"perplexity": 8.0}])
    assert body(tables.perplexity(results))[0][-2] == "8.0"


def test_size_shows_both_bit_counts_and_keeps_the_last_measurement(results):
    write(
        results / "size.jsonl",
        [SIZE | {"file_bytes": 1}, SIZE, SIZE | {"embeddings": "float", "ratio": None}],
    )
    assert body(tables.size(results)) == [
        ["bert-base", "w4", "8", "4.200", "5.100", "64.0 MiB", "416.0 MiB", "0.1538"],
        ["bert-base", "w4", "float", "4.200", "5.100", "64.0 MiB", "416.0 MiB", "–"],
    ]


def test_stage1_shows_time_and_memory_with_their_ratios(results):
    write(results / "stage1_cost.jsonl", [STAGE1])
    assert body(tables.stage1(results)) == [
        [
            "bert-base",
            "mse",
            "w4",
            "12.34 s",
            "1.20 s",
            "10.28×",
            "301 MiB",
            "89 MiB",
            "3.37×",
            "1",
            "a processor",
        ]
    ]


def test_budgets_puts_what_is_compared_together(results):
    other = BUDGET | {"label": "w4", "budget": "spread w4", "loss": -0.001}
    write(results / "budgets.jsonl", [other, BUDGET | {"spearman": 0.1}, BUDGET])
    assert body(tables.budgets(results)) == [
        ["minilm", "bits 3.2", "mixed", "3.188", "0.8665", "+0.0005", "0.1000"],
        ["minilm", "spread w4", "w4", "3.188", "0.8665", "-0.0010", "0.1000"],
    ]


def test_perplexity_puts_untuned_and_tuned_side_by_side(results):
    tuned = PERPLEXITY | {"method": "outliers", "perplexity": 30.0}
    floats = PERPLEXITY | {"scheme": "float", "effective_bits": 16.0, "model_bits": 16.0, "perplexity": 29.96}
    wide = PERPLEXITY | {"window": 1024}
    write(results / "perplexity.jsonl", [wide, PERPLEXITY | {"perplexity": 1.0}, tuned, PERPLEXITY, floats])
    assert body(tables.perplexity(results)) == [
        ["opt", "wiki", "float", "256", "128", "16.000", "16.000", "30.0", "–"],
        ["opt", "wiki", "w4", "256", "128", "4.223", "6.500", "33.3", "30.0"],
        ["opt", "wiki", "w4", "1024", "128", "4.223", "6.500", "33.3", "–"],
    ]


def test_rewriting_fills_only_the_region_and_then_check_agrees(tmp_path, results):
    write(results / "size.jsonl", [SIZE])
    (tmp_path / "docs").mkdir()
    for path in (tmp_path / "README.md", tmp_path / "docs" / "size.md"):
        path.write_text(EMPTY, encoding="utf-8")
    assert tables.main([], root=tmp_path) == 0
    for path in (tmp_path / "README.md", tmp_path / "docs" / "size.md"):
        text = path.read_text(encoding="utf-8")
        assert text == f"before\n<!-- table:size -->\n{tables.size(results)}<!-- /table -->\nafter\n"
    assert tables.main(["--check"], root=tmp_path) == 0


def test_check_fails_on_a_difference_prints_it_and_writes_nothing(tmp_path, results, capsys):
    write(results / "size.jsonl", [SIZE])
    readme = tmp_path / "README.md"
    readme.write_text(EMPTY, encoding="utf-8")
    assert tables.main(["--check"], root=tmp_path) == 1
    assert readme.read_text(encoding="utf-8") == EMPTY
    diff = capsys.readouterr().out
    assert diff.startswith("--- README.md\n+++ README.md (generated)\n")
    assert "+| bert-base | w4 | 8 | 4.200 |" in diff


def test_nothing_to_do_without_documents(tmp_path):
    assert tables.main(["--check"], root=tmp_path) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table:nothing -->\n<!-- /table -->\n", "unknown table 'nothing'"),
        ("<!-- table:size -->\n", "needs its own"),
        ("<!-- table:size -->\n<!-- table:stage1 -->\n<!-- /table -->\n", "needs its own"),
    ],
)
def test_a_bad_region_is_an_error_that_names_the_file(tmp_path, results, capsys, text, message):
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    assert tables.main([], root=tmp_path) == 2
    error = capsys.readouterr().err
    assert str(readme) in error
    assert message in error
    assert readme.read_text(encoding="utf-8") == text


def test_a_broken_row_is_an_error_that_names_the_line(tmp_path, results, capsys):
    (results / "size.jsonl").write_text(json.dumps(SIZE) + "\n{broken\n", encoding="utf-8")
    (tmp_path / "README.md").write_text(EMPTY, encoding="utf-8")
    assert tables.main([], root=tmp_path) == 2
    assert "size.jsonl:2:" in capsys.readouterr().err
