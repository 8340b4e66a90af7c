"""The documented examples run as they are printed."""

import re
from pathlib import Path

from lowbit.strategies import registry

DOCS = Path(__file__).resolve().parents[1] / "docs"


def example(page, name):
    """The code between the markers of an example."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (code,) = re.findall(rf"<!-- example:{name} -->\n```python\n(.*?)```\n<!-- /example -->", text, re.DOTALL)
    return code


def test_the_example_of_adding_a_strategy(monkeypatch):
    monkeypatch.setattr(registry, "_STRATEGIES", dict(registry._STRATEGIES))
    names = {}
    exec(example("strategies.md", "strategy"), names)
    exec(example("strategies.md", "test"), names)
    names["test_the_step_is_a_part_of_the_mean_magnitude"]()
    assert "mean" in registry._STRATEGIES


def test_every_strategy_is_listed_with_its_options():
    listed = {}
    for line in (DOCS / "strategies.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            cells = line.replace(r"\|", "/").split("|")
            listed[cells[1].split("`")[1]] = re.findall(r"`(\w+)` \(", cells[5])
    known = {name: registry._parameters(function) for name, (function, _) in registry._STRATEGIES.items()}
    assert {name: [p for p in options if p != registry.HESSIAN] for name, options in known.items()} == listed
