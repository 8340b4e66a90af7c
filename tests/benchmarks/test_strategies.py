import pytest
import strategies
import stsb
import torch

from lowbit.data import Examples


@pytest.fixture
def folder(tiny):
    return tiny.model("bert")


def test_the_output_error_by_moments_is_that_of_the_outputs():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(50, 8, generator=generator), torch.randn(6, 8, generator=generator)
    other = weight + 0.1 * torch.randn(6, 8, generator=generator)
    expected = float((x @ (other - weight).t()).norm() / (x @ weight.t()).norm())
    found = strategies.output_error({"a": weight}, {"a": other}, {"a": x.t() @ x})
    assert found == pytest.approx(expected, rel=1e-5)


def test_moments_are_those_of_the_true_inputs_without_padding(folder, monkeypatch):
    texts, pairs = ["good film"], ["bad book the a was it very poor"]
    monkeypatch.setattr(strategies, "sts_examples", lambda split: Examples(texts, pairs, [1.0], None, split))
    model = stsb.load_model(folder)
    found = strategies.input_moments(model, folder)
    assert found.keys() == stsb.block_linears(model).keys()
    path, inputs = "encoder.layer.1.output.dense", []
    model.get_submodule(path).register_forward_pre_hook(lambda module, given: inputs.append(given[0][0]))
    for text in (*texts, *pairs):
        for _, batch in stsb.Sentences(folder, [text]).batches():
            model(**batch)
    x = torch.cat(inputs).detach()
    torch.testing.assert_close(found[path], x.t() @ x)


def test_there_is_a_scheme_per_width_granularity_and_strategy(folder, monkeypatch):
    monkeypatch.setattr(strategies, "OVERHEAD", 5)  # matrices so small have few weights per step size
    monkeypatch.setattr(strategies, "GRANULARITIES", {"tensor": None, "channel": None, "group": 16})
    found = strategies.schemes(stsb.load_model(folder), ["minmax", "mse"], [4])
    assert [str(scheme) for scheme in found] == ["w4t (minmax)", "w4t", "w4 (minmax)", "w4", "w4g16 (minmax)", "w4g16"]


def test_levels_are_the_first_that_the_strategy_has_and_that_do_not_take_too_many_bits(folder, monkeypatch):
    monkeypatch.setattr(strategies, "OVERHEAD", 5)
    known = strategies.get_strategy.__globals__["_STRATEGIES"]
    monkeypatch.setitem(known, "minmax", (known["minmax"][0], ("codebook", "shared-codebook")))
    model = stsb.load_model(folder)

    def levels(bits, granularity):
        return strategies.first_of_use(model, bits, granularity, None, "minmax").levels

    assert [levels(4, "tensor"), levels(4, "channel")] == ["codebook", "shared-codebook"]
    assert strategies.first_of_use(model, 2, "channel", None, "mse").levels == "midrise"
