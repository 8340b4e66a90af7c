import pytest
import torch

from lowbit.errors import SchemeError
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import OutlierRule, Scheme
from lowbit.strategies import Fit, get_strategy, needs_hessian, registry, strategy


@pytest.mark.parametrize("name", ["hqq", "kmeans", "lsq", "minmax", "mse", "percentile", "sigma"])
def test_strategies_by_name(name):
    assert get_strategy(Scheme(strategy=name)).__name__ == name
    assert name in registry._STRATEGIES


def test_unknown_name_lists_the_known():
    with pytest.raises(
        SchemeError, match=r"unknown strategy 'rtn'; use one of hqq, kmeans, lsq, minmax, mse, percentile, sigma"
    ):
        quantize_tensor(torch.ones(2, 2), Scheme(strategy="rtn"))


def test_unknown_option_lists_the_known():
    with pytest.raises(SchemeError, match="'sigma' has no option 'k'; its options: width"):
        quantize_tensor(torch.ones(2, 2), Scheme(strategy="sigma", options={"k": 3}))
    with pytest.raises(SchemeError, match="'mse' has no option 'keep'; its options: none"):
        get_strategy(Scheme(options={"keep": None}))


def test_levels_that_a_strategy_cannot_fit_are_refused():
    with pytest.raises(SchemeError, match="strategy 'mse' has no levels 'codebook'; use full or midrise"):
        quantize_tensor(torch.ones(2, 2), Scheme(levels="codebook"))


def test_a_new_strategy_is_one_decorated_function(monkeypatch):
    monkeypatch.setattr(registry, "_STRATEGIES", dict(registry._STRATEGIES))

    @strategy("full")
    def constant(blocks, scheme, keep, *, step=1.0):
        assert keep is None
        return Fit(torch.full(blocks.shape[:1], step))

    assert "constant" in registry.strategy_names()
    weight = torch.tensor([[1.2, -2.6]])
    found = quantize_tensor(weight, Scheme(strategy="constant", options={"step": 0.5}, outliers=None))
    assert found.dequantize().tolist() == [[1.0, -2.5]]
    assert quantize_tensor(weight, Scheme(strategy="constant", outliers=None)).scale.item() == 1


def test_a_strategy_that_names_a_hessian_gets_it_and_may_choose_codes_and_move_outliers(monkeypatch):
    monkeypatch.setattr(registry, "_STRATEGIES", dict(registry._STRATEGIES))

    @strategy("full")
    def moved(blocks, scheme, keep, *, hessian, amount=1.0):
        assert hessian.tolist() == [[1, 0], [0, 2]]
        codes = torch.full(blocks.shape, 9, dtype=torch.uint8)
        return Fit(torch.ones(blocks.shape[0]), codes=codes, shift=torch.full(blocks.shape, amount))

    scheme = Scheme(strategy="moved", outliers=OutlierRule("magnitude", 0.25))
    found = quantize_tensor(torch.tensor([[5.0, 1.0], [1.0, 2.0]]), scheme, hessian=torch.diag(torch.tensor([1.0, 2])))
    assert found.dequantize().tolist() == [[6, 1], [1, 1]]
    assert [needs_hessian(Scheme(strategy=name)) for name in ("moved", "mse")] == [True, False]
    with pytest.raises(SchemeError, match="'moved' has no option 'hessian'; its options: amount"):
        get_strategy(Scheme(strategy="moved", options={"hessian": 1}))
