import peers
import pytest
import untuned
from rows import read_rows

from lowbit import Scheme


class Task:
    """Stands in for STS-B: counts how often it is asked."""

    rows, calls = 7, 0

    def __init__(self, folder, split):
        pass

    def spearman(self, model):
        Task.calls += 1
        return 0.5


@pytest.fixture
def study(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(untuned, "FILE", tmp_path / "untuned.jsonl")
    monkeypatch.setattr(untuned, "StsB", Task)
    monkeypatch.setattr(Task, "calls", 0)

    def make(split="dev", again=False):
        return untuned.Study(tiny.model("bert"), "tiny", split, again)

    return make


def test_a_row_is_not_measured_twice_unless_asked(study):
    study().run_recipe("w4")
    first = read_rows(untuned.FILE)
    assert Task.calls == 2  # the float model and w4
    study().run_recipe("w4o0.5")
    assert read_rows(untuned.FILE) == first
    study(split="train").run_recipe("w4")
    study(again=True).run_recipe("w4")
    assert [row["split"] for row in read_rows(untuned.FILE)] == ["dev", "train", "dev"]
    assert Task.calls == 5  # the float score of dev was known the second time
    assert first[0]["loss"] == 0
    assert (first[0]["source"], first[0]["label"], first[0]["rows"]) == ("lowbit", "w4", 7)


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ((None, None, "1.0", "1.0"), [(None, True, None), ("1.0", None, 4.0)]),
        (("1.0", None), [("1.0", None, 4.0)]),
    ],
)
def test_a_row_replaces_that_of_an_absent_library_and_never_the_other_way(study, monkeypatch, installed, expected):
    peer = peers.Peer("some-package", "4 bits", lambda weight: (weight, 4 * weight.numel()))
    for version in installed:
        monkeypatch.setattr(peers.Peer, "version", version)
        study().run_peer(peer)
    rows = read_rows(untuned.FILE)
    assert [(row["version"], row.get("absent"), row.get("effective_bits")) for row in rows] == expected


def test_recipes_are_named_by_their_scheme_or_file(tmp_path):
    assert untuned.parse("w4o0.5")[1] == "w4"
    recipe, label = untuned.parse('{"bits": 3, "strategy": "sigma"}')
    assert (recipe.scheme, label) == (Scheme(bits=3, strategy="sigma"), "w3 (sigma)")
    (tmp_path / "mixed.yaml").write_text("scheme: w3\n")
    assert untuned.parse(str(tmp_path / "mixed.yaml"))[1] == "mixed"
