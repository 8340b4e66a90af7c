import json

import pytest

import lowbit


@pytest.fixture
def calls(monkeypatch):
    found = []

    def predict(model, texts, *, adapter=None, batch_size=32, max_length=None):
        rows = list(texts)
        found.append((model, rows, adapter, batch_size, max_length))
        for row in rows:
            yield {"value": 2.5} if model == "regressor" else {"label": str(len(row)), "score": 0.25}

    monkeypatch.setattr(lowbit, "predict", predict)
    return found


def test_texts(run, calls):
    result = run("predict", "dir", "one", "[b]three", "--batch-size", 2, "--max-length", 5)
    assert result.stdout == "3\t0.250\tone\n8\t0.250\t[b]three\n"
    assert calls == [("dir", ["one", "[b]three"], None, 2, 5)]


def test_json_lines(run, calls):
    lines = run("predict", "dir", "one", "three", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"label": "3", "score": 0.25}, {"label": "5", "score": 0.25}]


def test_numbers(run, calls):
    assert run("predict", "regressor", "one").stdout == "2.5\tone\n"


@pytest.mark.parametrize("given", ["a\n\nc d\n", "a\r\n\r\nc d", b"a\n\nc d\n"])
def test_standard_input_has_one_row_a_line(run, calls, given):
    assert run("predict", "dir", input=given).exit_code == 0
    assert calls[0][1] == ["a", "", "c d"]


def test_standard_input_that_is_not_utf8(run, calls):
    result = run("predict", "dir", input=b"a\n\xe9\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: standard input:2: not UTF-8")


def test_a_text_file(run, calls, tmp_path):
    (tmp_path / "rows.TXT").write_bytes("a\r\n\r\nb\u2028c\n".encode())
    run("predict", "dir", "--input", tmp_path / "rows.TXT")
    assert calls[0][1] == ["a", "", "b\u2028c"]


def test_a_table_with_pairs(run, calls, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"q": "a", "r": "b"}\n')
    result = run("predict", "dir", "--input", tmp_path / "rows.jsonl", "--text", "q", "--text-pair", "r")
    assert calls[0][1] == [("a", "b")]
    assert result.stdout == "2\t0.250\ta | b\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--input", "rows.txt"], "give texts or --input, not both"),
        (["a", "--text", "t"], "--text needs --input"),
        (["--input", "rows.txt", "--text-pair", "t"], "--text-pair needs --input"),
        (["--input", "rows.csv"], "--text must name the column"),
    ],
)
def test_usage_errors(run, calls, arguments, message):
    result = run("predict", "dir", *arguments, env={"COLUMNS": "160"})
    assert (result.exit_code, calls) == (2, [])
    assert message in result.stderr


def test_a_file_that_is_not_there(run, calls, tmp_path):
    result = run("predict", "dir", "--input", tmp_path / "none.txt")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {tmp_path / 'none.txt'}: cannot be read")
