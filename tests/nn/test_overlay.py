import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import AdapterError
from lowbit.nn import SPARSE, QuantLinear, overlay, rows_of, widen
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import OutlierRule, Scheme

SHAPE = (6, 16)


def linear(outliers=0.05):
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    rule = None if outliers is None else OutlierRule(share=outliers)
    return QuantLinear(quantize_tensor(weight, Scheme(outliers=rule)))


positions = st.sets(st.integers(0, SHAPE[0] * SHAPE[1] - 1), max_size=40).map(lambda s: torch.tensor(sorted(s)).long())


@settings(max_examples=40, deadline=None)
@given(positions)
def test_new_outliers_have_the_value_of_their_code(chosen):
    module = linear()
    before, own = module.weight, module.tensor.outlier_positions()
    widen(module, chosen)
    assert set(module.tensor.outlier_positions().tolist()) == {*own.tolist(), *chosen.tolist()}
    assert torch.equal(module.weight.flatten()[own], before.flatten()[own])
    torch.testing.assert_close(module.weight, before, rtol=1e-3, atol=1e-6)  # a value that is kept has 16 bits
    assert {name: getattr(module, name).dtype for name in SPARSE} == {
        "outlier_ptr": torch.int32,
        "outlier_col": torch.uint16,
        "outlier_value": torch.float16,
    }


@settings(max_examples=40, deadline=None)
@given(positions)
def test_values_are_put_where_they_belong_and_nowhere_else(chosen):
    source, module = linear(), linear()
    with torch.no_grad():
        source.scale.mul_(2)
    widen(source, chosen)
    before = module.weight.flatten()
    overlay(module, *rows_of(source, chosen).values())
    after = module.weight.flatten()
    rest = torch.ones(before.numel(), dtype=torch.bool)
    rest[chosen] = False
    assert torch.equal(after[chosen], source.weight.flatten()[chosen])
    assert torch.equal(after[rest], before[rest])


def test_a_module_without_outliers_takes_none():
    with pytest.raises(AdapterError, match=r"keeps no outliers.*quantize it with some"):
        widen(linear(None), torch.tensor([3]))
