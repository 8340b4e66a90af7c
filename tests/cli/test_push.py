import json

import pytest

import lowbit
from lowbit.hub import Pushed


@pytest.fixture
def calls(monkeypatch):
    found = []

    def push(directory, repo_id, **options):
        found.append((str(directory), repo_id, options))
        files = () if repo_id == "me/same" else ("config.json", "README.md")
        return Pushed(repo_id, f"https://hub/{repo_id}", "abc", files)

    monkeypatch.setattr(lowbit, "push", push)
    return found


def test_defaults_are_those_of_the_function(run, calls):
    result = run("push", "dir", "me/backbone")
    assert result.stdout == "uploaded: config.json, README.md\nhttps://hub/me/backbone\n"
    assert calls == [("dir", "me/backbone", {"backbone": None, "private": None, "replace": False})]


def test_every_option_is_passed_on(run, calls):
    run("push", "dir", "me/adapter", "--backbone", "me/backbone", "--private", "--replace")
    run("push", "dir", "me/adapter", "--public")
    assert calls[0][2] == {"backbone": "me/backbone", "private": True, "replace": True}
    assert calls[1][2]["private"] is False


def test_nothing_new(run, calls):
    assert run("push", "dir", "me/same").stdout.splitlines()[0] == "nothing uploaded: the same files are there already"


def test_json(run, calls):
    values = json.loads(run("push", "dir", "me/backbone", "--json").stdout)
    assert values == {
        "repo_id": "me/backbone",
        "url": "https://hub/me/backbone",
        "commit": "abc",
        "files": ["config.json", "README.md"],
    }


def test_a_folder_that_is_no_backbone(run, bert):
    result = run("push", bert, "me/backbone")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is not a lowbit backbone" in result.stderr
