import json
import sys

import pytest

import lowbit
from lowbit.cli import app, main
from lowbit.errors import CheckpointError

VERBS = ["plan", "quantize", "tune", "zeroshot", "merge", "evaluate", "predict", "inspect", "verify", "push", "demo"]


def test_every_verb_is_there():
    assert sorted(command.callback.__name__ for command in app.registered_commands) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help(run, verb):
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_version(run):
    assert run("--version").stdout == f"lowbit {lowbit.__version__}\n"


def test_scheme_syntax_survives_the_help_markup(run):
    assert "w<bits>[a8|a8s][g<group>|t][o<percent>]" in run("plan", "--help", env={"COLUMNS": "160"}).stdout


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["plan"], ["quantize", "model"], ["plan", "model", "--levels", "x"]]
)
def test_usage_errors(run, arguments):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def fail(error):
    def failing(*arguments, **options):
        raise error

    return failing


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_an_error_is_one_line(run, monkeypatch, flags):
    monkeypatch.setattr(lowbit, "merge", fail(CheckpointError("first [bold]line\n  second line")))
    result = run("merge", "a", "b", "-o", "c", *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: first [bold]line second line\n"


def test_interruption(run, monkeypatch):
    monkeypatch.setattr(lowbit, "quantize", fail(KeyboardInterrupt()))
    result = run("quantize", "model", "-o", "x")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_a_bug_keeps_its_traceback(run, monkeypatch):
    monkeypatch.setattr(lowbit, "merge", fail(ZeroDivisionError("bug")))
    with pytest.raises(ZeroDivisionError, match="bug"):
        run("merge", "a", "b", "-o", "c")


def test_main_is_the_same_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lowbit", "merge", "a", "b", "-o", "c", "--json"])
    monkeypatch.setattr(lowbit, "merge", lambda backbone, adapter, output: output)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert json.loads(capsys.readouterr().out) == {"path": "c"}
