import pytest
import torch

from lowbit.errors import SchemeError
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import Scheme
from lowbit.strategies import get_strategy, minmax, mse, registry, sigma, strategy


def test_strategies_by_name():
    assert [get_strategy(name, {}) for name in ("minmax", "mse", "sigma")] == [minmax, mse, sigma]


def test_unknown_name_lists_the_known():
    with pytest.raises(SchemeError, match=r"unknown strategy 'rtn'; use one of .*minmax, mse.*, sigma"):
        quantize_tensor(torch.ones(2, 2), Scheme(strategy="rtn"))


def test_unknown_option_lists_the_known():
    with pytest.raises(SchemeError, match="'sigma' has no option 'k'; its options: width"):
        quantize_tensor(torch.ones(2, 2), Scheme(strategy="sigma", options={"k": 3}))
    with pytest.raises(SchemeError, match="'mse' has no option 'keep'; its options: none"):
        get_strategy("mse", {"keep": None})


def test_a_new_strategy_is_one_decorated_function(monkeypatch):
    monkeypatch.setattr(registry, "_STRATEGIES", dict(registry._STRATEGIES))

    @strategy
    def constant(blocks, scheme, keep, *, step=1.0):
        assert keep is None
        return torch.full(blocks.shape[:1], step), None

    weight = torch.tensor([[1.2, -2.6]])
    found = quantize_tensor(weight, Scheme(strategy="constant", options={"step": 0.5}, outliers=None))
    assert found.dequantize().tolist() == [[1.0, -2.5]]
    assert quantize_tensor(weight, Scheme(strategy="constant", outliers=None)).scale.item() == 1
