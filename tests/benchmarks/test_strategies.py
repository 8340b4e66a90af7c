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


def test_there_is_a_scheme_per_width_granularity_and_strategy():
    found = [str(scheme) for scheme in strategies.schemes(["minmax", "mse"], [4])]
    assert found == ["w4t (minmax)", "w4t", "w4 (minmax)", "w4", "w4g64 (minmax)", "w4g64"]


def test_a_strategy_without_the_default_levels_gets_those_that_it_has(monkeypatch):
    function = strategies.get_strategy(strategies.Scheme(strategy="minmax"))
    monkeypatch.setitem(strategies.get_strategy.__globals__["_STRATEGIES"], "minmax", (function, ("full",)))
    assert strategies.first_known(2, "channel", None, "minmax").levels == "full"
    assert strategies.first_known(2, "channel", None, "mse").levels == "midrise"
