import re

import pytest

from lowbit.data import Examples, load_table
from lowbit.errors import DataError


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8", newline="")
        return path

    return write


def test_csv_with_quotes_line_breaks_and_other_columns(file):
    path = file("a.csv", 'id,label,text\r\n1,no,"a ""b"", c"\r\n2,yes,"two\nlines"\r\n3,no,plain\r\n\r\n')
    assert load_table(path, text="text", label="label") == Examples(
        ['a "b", c', "two\nlines", "plain"], None, [0, 1, 0], ("no", "yes"), str(path)
    )


def test_tsv_quotes_are_text_and_only_newlines_end_rows(file):
    path = file("a.tsv", 'q\ta\tl\n"open\tx\u2028y\t0\nz\t"w"\t1\n')
    examples = load_table(path, text="q", text_pair="a", label="l")
    assert (examples.texts, examples.pairs) == (['"open', "z"], ["x\u2028y", '"w"'])
    assert (examples.labels, examples.label_names) == ([0, 1], ("0", "1"))


@pytest.mark.parametrize("suffix", [".jsonl", ".json-lines", ".JSONL"])
def test_json_lines(file, suffix):
    path = file(f"a{suffix}", '{"t": "é", "l": 2, "more": []}\n{"l": "10", "t": ""}\n')
    examples = load_table(path, text="t", label="l")
    assert (examples.texts, examples.labels, examples.label_names) == (["é", ""], [1, 0], ("10", "2"))


def test_given_label_names_set_the_order(file):
    path = file("a.csv", "t,l\nx,b\ny,a\n")
    examples = load_table(path, text="t", label="l", label_names=["c", "b", "a"])
    assert (examples.labels, examples.label_names) == ([1, 2], ("c", "b", "a"))


def test_without_labels(file):
    examples = load_table(file("a.csv", "t,l\nx,b\n"), text="t")
    assert (examples.labels, examples.label_names) == (None, None)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "t,l\nx,1.5\ny,-2\n"), ("a.jsonl", '{"t":"x","l":1.5}\n{"t":"y","l":"-2"}')],
)
def test_regression(file, name, content):
    examples = load_table(file(name, content), text="t", label="l", regression=True)
    assert (examples.labels, examples.label_names) == ([1.5, -2.0], None)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", "", {}, "a.csv: the file is empty"),
        ("a.csv", "t,l\n", {}, "a.csv: no row after the header"),
        ("a.csv", "t,k\nx,a\n", {}, "a.csv:1: the header names column 'l' 0 times, not once; it has: t, k"),
        ("a.csv", "t,l,l\nx,a,b\n", {}, "a.csv:1: the header names column 'l' 2 times"),
        ("a.csv", 't,l\n"x\ny",a\nz\n', {}, "a.csv:4: 1 columns instead of 2"),
        ("a.csv", "t,l\nx,a\n\ny,a\n", {}, "a.csv:3: 0 columns instead of 2"),
        ("a.csv", 't,l\nx,a\n"y,a\nz,b\n', {}, "a.csv:3: broken CSV (unexpected end of data)"),
        ("a.csv", 't,l\n"x"y,a\n', {}, "a.csv:2: broken CSV"),
        ("a.csv", "t,l\nx,a\ny,c\n", {"label_names": "ab"}, "a.csv:3: label 'c' is not one of a, b"),
        ("a.csv", "t,l\nx,a\ny,\n", {}, "a.csv:3: '' is no label"),
        ("a.csv", "t,l\nx,1\ny,one\n", {"regression": True}, "a.csv:3: 'one' is not a number;"),
        ("a.csv", "t,l\nx,nan\n", {"regression": True}, "a.csv:2: 'nan' is not a number;"),
        ("a.csv", "t,l\nx,1\n", {"regression": True, "label_names": "ab"}, "regression has no label names"),
        ("a.tsv", "t\tl\nx\ta\tb\n", {}, "a.tsv:2: 3 columns instead of 2"),
        ("a.json", "[]", {}, "a.json: unknown suffix '.json'; use one of .csv, .tsv, .jsonl, .json-lines"),
        ("a.jsonl", '{"t":"x","l":"a"}\n{"t":\n', {}, "a.jsonl:2: broken JSON"),
        ("a.jsonl", '{"t":"x","l":"a"}\n\n{"t":"x","l":"a"}', {}, "a.jsonl:2: broken JSON"),
        ("a.jsonl", '["x", "a"]', {}, "a.jsonl:1: not a JSON object"),
        ("a.jsonl", '{"t":"x","l":"a"}\n{"t":"y"}', {}, "a.jsonl:2: no 'l'; this row has: t"),
        ("a.jsonl", '{"t":"x","l":"a"}\n{"t":3,"l":"a"}', {}, "a.jsonl:2: 3 is no text"),
        ("a.jsonl", '{"t":"x","l":true}', {}, "a.jsonl:1: True is no label"),
        ("a.jsonl", '{"t":"x","l":true}', {"regression": True}, "a.jsonl:1: True is not a number"),
        ("a.jsonl", '{"t":"x","l":null}', {"regression": True}, "a.jsonl:1: None is not a number"),
        ("a.jsonl", '{"t":"x","l":1' + "0" * 400 + "}", {"regression": True}, "a.jsonl:1: 1"),
    ],
)
def test_bad_files_are_named_by_line(file, name, content, options, message):
    with pytest.raises(DataError, match=re.escape(message)):
        load_table(file(name, content), text="t", label="l", **options)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_bad_utf8_is_named_by_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"t\nx\n\xe9\n")
    with pytest.raises(DataError, match=rf"{name}:3: not UTF-8"):
        load_table(path, text="t")
