"""Dropout of every architecture can be set for a block, and is what it was afterwards."""

import pytest
import torch

import lowbit
from lowbit.adapter import load_classifier, read_adapter
from lowbit.tuning.dropout import dropout_of
from tests.models import tiny_batch
from tests.tiny import BACKBONES, OTHER_BACKBONES, options, toy_data

DRAWS = (0, 1, 2)


def losses(model):
    """The loss of one batch in training mode, under different random numbers."""
    batch = tiny_batch(model.config)
    found = []
    for seed in DRAWS:
        torch.manual_seed(seed)
        found.append(model(**batch, labels=torch.tensor([0, 1])).loss.item())
    return found


@pytest.mark.parametrize("arch", [*BACKBONES, *OTHER_BACKBONES])
def test_none_is_left_and_none_is_forgotten(tiny, arch):
    model = load_classifier(tiny.backbone(arch), ("no", "yes"), seed=0)[0].train()
    own = losses(model)
    with dropout_of(model, 0.0):
        without = losses(model)
    with dropout_of(model, 0.5):
        much = losses(model)
    assert len(set(without)) == 1
    assert len(set(much)) == len(DRAWS)
    assert losses(model) == own
    with dropout_of(model, None):
        assert losses(model) == own


@pytest.mark.parametrize("method", ["outliers", "lora", "full"])
def test_the_default_goes_by_the_method(tiny, tmp_path, method):
    """None where few values of a backbone are trained, and the model's own 0.1 where all of them are."""
    start, needed = tiny.start(method)
    found = {}
    for dropout in (None, 0.0, 0.1):
        output = tmp_path / str(dropout)
        lowbit.tune(start, output, toy_data(), method=method, options=options(dropout=dropout, **needed))
        found[dropout] = lowbit.load(output).state_dict() if method == "full" else read_adapter(output)[1]
    default = 0.1 if method == "full" else 0.0
    other = 0.0 if method == "full" else 0.1
    assert all(torch.equal(found[None][name], value) for name, value in found[default].items())
    assert not all(torch.equal(found[None][name], value) for name, value in found[other].items())


def test_an_adapter_says_what_it_was(tiny):
    assert read_adapter(tiny.adapter("bert"))[0].options["dropout"] == 0.0
