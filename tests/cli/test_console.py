import json
import sys

import pytest

from lowbit.cli.console import cell, print_json, print_sizes, print_table, progress


def test_json_has_no_numbers_that_json_does_not_know(capsys):
    print_json({"a": float("nan"), "b": [1.5, float("inf")], "c": ("x", None)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, None], "c": ["x", None]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0.123456, "0.1235"),
        ((48, 32), "48x32"),
        (["no", "yes"], "no, yes"),
        ({"a": 1, "c": None, "b": 0.5}, "a 1, b 0.5"),
    ],
)
def test_cell(value, text):
    assert cell(value) == text


def test_table_keeps_long_names_and_brackets(capsys):
    name = "decoder.block.0-11.layer.1.EncDecAttention.o [bold]"
    print_table([{"module": name, "model_bits": 4.25}])
    lines = capsys.readouterr().out.splitlines()
    assert "model bits" in lines[0]
    assert name in lines[2]


def test_an_empty_table(capsys):
    print_table([])
    assert not capsys.readouterr().out.strip()


def test_both_bits_are_printed(capsys):
    print_sizes(8_000_000, 1_000_000, 4.2449, 5.5)
    assert capsys.readouterr().out.splitlines() == [
        "8.0 MB -> 1.0 MB, 8.00 times smaller",
        "effective bits 4.24 (block linears), model bits 5.50 (whole model)",
    ]


def test_what_a_library_prints_during_progress_goes_to_standard_error(capsys):
    with progress("work") as update:
        update(1, 2, "half [of] it")
        print("noise")
    print("result", file=sys.stdout)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("result\n", "noise\n")
