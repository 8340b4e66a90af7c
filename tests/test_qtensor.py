import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import CheckpointError, SchemeError, WeightError
from lowbit.packing import packed_size
from lowbit.qtensor import QuantizedTensor, quantize_tensor, quantize_with_error, tensor_specs
from lowbit.scheme import OutlierRule, Scheme

GRIDS = [{"levels": "full"}, {"levels": "midrise"}, {"symmetric": False}]
STEPS = [{"granularity": "tensor"}, {"granularity": "channel"}, {"granularity": "group", "group_size": 16}]


def step_name(fields):
    return fields["granularity"]


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(one, two):
    """Whether two quantized tensors hold the same bytes under the same names."""
    one, two = one.to_tensors(), two.to_tensors()
    return list(one) == list(two) and all(one[n].dtype == two[n].dtype and torch.equal(one[n], two[n]) for n in one)


@st.composite
def weights_and_schemes(draw):
    group = draw(st.integers(2, 9))
    granularity = draw(st.sampled_from(["tensor", "channel", "group"]))
    columns = draw(st.integers(1, 8)) * group if granularity == "group" else draw(st.integers(1, 37))
    share = draw(st.none() | st.floats(0.001, 0.5))
    rule = draw(st.sampled_from(["tail", "magnitude", "error", "random"]))
    if draw(st.sampled_from(["uniform", "uniform", "codebook"])) == "codebook":
        fit = {"strategy": "kmeans", "levels": draw(st.sampled_from(["codebook", "shared-codebook"]))}
    else:
        uniform = ["hqq", "lsq", "minmax", "mse", "percentile", "sigma"]
        fit = {"strategy": draw(st.sampled_from(uniform)), **draw(st.sampled_from(GRIDS))}
    scheme = Scheme(
        bits=draw(st.integers(2, 8)),
        granularity=granularity,
        group_size=group if granularity == "group" else None,
        outliers=None if share is None else OutlierRule(rule, share),
        **fit,
    )
    weight = gaussian(draw(st.integers(1, 9)), columns, seed=draw(st.integers(0, 99)))
    return weight * draw(st.sampled_from([1e-6, 0.02, 30.0])), scheme


@given(weights_and_schemes())
def test_stored_tensors_give_the_same_weight_back(case):
    weight, scheme = case
    shape = tuple(weight.shape)
    found = quantize_tensor(weight, scheme)
    tensors = found.to_tensors()
    assert {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()} == tensor_specs(scheme, shape)
    assert tensors["weight"].numel() == packed_size(weight.numel(), scheme.bits)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    again = QuantizedTensor.from_tensors(copies, Scheme.from_dict(scheme.to_dict()), shape)
    assert same(again, found)
    assert torch.equal(again.dequantize(), found.dequantize())


@given(weights_and_schemes())
def test_inliers_are_within_half_a_step_and_outliers_exact_to_float16(case):
    weight, scheme = case
    found = quantize_tensor(weight, scheme)
    decoded, codes = found.dequantize(), found.codes()
    steps = found.scale.float().repeat_interleave(weight.shape[1] // found.scale.shape[1], dim=1)
    positions = found.outlier_positions()
    if found.codebook is None:
        unclipped = (codes > 0) & (codes < 2**scheme.bits - 1)
        unclipped.view(-1)[positions] = False
        assert ((decoded - weight).abs() <= steps * 0.5001)[unclipped].all()
    else:  # no entry is nearer than the one that was taken
        entries = found.codebook.float().repeat_interleave(weight.numel() // found.codebook.shape[0], dim=0)
        nearest = (
            (entries * steps.expand(weight.shape).reshape(-1, 1) - weight.reshape(-1, 1))
            .abs()
            .amin(dim=1)
            .view(weight.shape)
        )
        dense = found.dequantize_dense()
        assert ((dense - weight).abs() <= nearest + 1e-5 * steps).all()
    assert torch.equal(decoded.flatten()[positions], weight.flatten()[positions].half().float())
    assert positions.tolist() == sorted(set(positions.tolist()))


@pytest.mark.parametrize("step", STEPS, ids=step_name)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_dequantize_by_hand(grid, step):
    found = quantize_tensor(gaussian(3, 32), Scheme(bits=3, outliers=OutlierRule(share=0.05), **grid, **step))
    codes, groups = found.codes().tolist(), found.scale.shape[1]
    decoded = [[0.0] * 32 for _ in range(3)]
    for row in range(3):
        for col in range(32):
            where = (row if found.scale.shape[0] > 1 else 0, col * groups // 32)
            zero = found.scheme.offset if found.zero_point is None else int(found.zero_point[where])
            decoded[row][col] = (codes[row][col] - zero) * float(found.scale[where])
    torch.testing.assert_close(found.dequantize_dense(), torch.tensor(decoded), rtol=1e-6, atol=0)
    for row in range(3):  # outliers replace what stands there, nothing is added
        for index in range(found.outlier_ptr[row], found.outlier_ptr[row + 1]):
            decoded[row][found.outlier_col.long()[index]] = float(found.outlier_value[index])
    assert found.outlier_count == 5
    torch.testing.assert_close(found.dequantize(), torch.tensor(decoded), rtol=1e-6, atol=0)


@pytest.mark.parametrize("strategy", ["minmax", "mse", "sigma"])
@pytest.mark.parametrize("step", STEPS, ids=step_name)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_dense_part_is_fitted_without_the_outliers(grid, step, strategy):
    """Ten times larger outliers at the same positions change neither steps nor the other codes."""
    weight = gaussian(8, 64)
    scheme = Scheme(strategy=strategy, outliers=OutlierRule("magnitude", 0.04), **grid, **step)
    one = quantize_tensor(weight, scheme)
    at = one.outlier_positions()
    weight.view(-1)[at] *= 10
    ten = quantize_tensor(weight, scheme)
    assert torch.equal(one.scale, ten.scale)
    assert torch.equal(one.codes().flatten().index_fill(0, at, 0), ten.codes().flatten().index_fill(0, at, 0))
    assert (
        torch.equal(ten.outlier_value, (one.outlier_value * 10).half())
        or (ten.outlier_value.float() - weight.view(-1)[at]).abs().max() <= weight.abs().max() * 2**-11
    )


def test_the_error_rule_finds_planted_values_that_stretch_the_grid():
    weight = gaussian(16, 64)
    weight.view(-1)[[3, 500, 700]] = torch.tensor([30.0, -40.0, 50.0])
    found = quantize_tensor(weight, Scheme(outliers=OutlierRule("error", 5 / weight.numel())))
    assert {3, 500, 700} <= set(found.outlier_positions().tolist())
    assert found.scale.max() < 1


def test_a_budget_that_rounds_to_no_outlier_leaves_empty_rows():
    found = quantize_tensor(gaussian(2, 3), Scheme())
    assert (found.outlier_count, found.outlier_ptr.tolist()) == (0, [0, 0, 0])
    assert torch.equal(found.dequantize(), found.dequantize_dense())


@pytest.mark.parametrize("shape", [(768, 768), (768, 3072), (3072, 768)], ids=str)
def test_effective_bits_of_w4_with_half_a_percent(shape):
    specs = tensor_specs(Scheme(), shape)
    bits = 8 * sum(dtype.itemsize * math.prod(size) for dtype, size in specs.values()) / math.prod(shape)
    assert 4.16 < bits <= 4.25


def test_effective_bits_are_those_of_the_tensors():
    stored = sum(t.nbytes for t in quantize_tensor(gaussian(768, 768), Scheme()).to_tensors().values())
    assert stored == 768 * 768 // 2 + 768 * 4 + 769 * 4 + 2949 * (2 + 2)


@pytest.mark.parametrize(
    ("fields", "books"),
    [
        ({}, 24),
        ({"granularity": "tensor"}, 1),
        ({"granularity": "group", "group_size": 16}, 24 * 4),
        ({"levels": "shared-codebook"}, 1),
        ({"levels": "shared-codebook", "granularity": "group", "group_size": 16}, 1),
    ],
    ids=str,
)
def test_codebooks_count_in_the_bytes(fields, books):
    """Sixteen entries of two bytes for each codebook, on top of codes and step sizes."""
    scheme = Scheme(strategy="kmeans", outliers=None, **fields)
    tensors = quantize_tensor(gaussian(24, 64), scheme).to_tensors()
    assert {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()} == tensor_specs(scheme, (24, 64))
    uniform = Scheme(outliers=None, **{n: v for n, v in fields.items() if n != "levels"})
    without = sum(t.nbytes for t in quantize_tensor(gaussian(24, 64), uniform).to_tensors().values())
    assert sum(t.nbytes for t in tensors.values()) == without + books * 32


@pytest.mark.parametrize(("columns", "dtype"), [(65_535, torch.uint16), (65_536, torch.int32)])
def test_columns_past_16_bits(columns, dtype):
    weight = torch.zeros(1, columns)
    weight[0, -1] = 7.0
    found = quantize_tensor(weight, Scheme(outliers=OutlierRule("magnitude", 1 / columns)))
    assert found.outlier_col.dtype == dtype
    assert found.outlier_positions().tolist() == [columns - 1]


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ((768, 3072), {"granularity": "tensor"}),
        ((768, 3072), {"granularity": "tensor", "strategy": "sigma", "outliers": OutlierRule("tail", None, 3.0)}),
        ((768, 3072), {"strategy": "minmax", "outliers": OutlierRule("tail")}),
        ((96, 3072), {"granularity": "group", "group_size": 64, "strategy": "minmax"}),
        ((1, 100_001), {"strategy": "sigma", "outliers": OutlierRule("tail", None, 3.0)}),
    ],
    ids=["tensor", "tensor sigma", "channel minmax", "group minmax", "long row sigma"],
)
def test_the_bytes_do_not_depend_on_the_number_of_threads(shape, fields, with_threads):
    weight = gaussian(*shape)
    assert same(*with_threads(lambda: quantize_tensor(weight, Scheme(**fields))))


@pytest.mark.parametrize("rule", ["error", "random"])
def test_quantizing_is_pure(rule):
    weight, scheme = gaussian(8, 16), Scheme(outliers=OutlierRule(rule, 0.1))
    before, state = weight.clone(), torch.get_rng_state()
    one, two = quantize_tensor(weight, scheme), quantize_tensor(weight, scheme)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weight, before)
    assert same(one, two)


def test_the_random_rule_follows_a_given_generator():
    weight, scheme = gaussian(8, 16), Scheme(outliers=OutlierRule("random", 0.1))
    draws = [quantize_tensor(weight, scheme, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    assert same(draws[0], quantize_tensor(weight, scheme))
    assert not torch.equal(draws[0].outlier_positions(), draws[1].outlier_positions())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_input_of_other_dtypes_is_read_as_float32(dtype):
    weight = gaussian(5, 33).to(dtype)
    found = quantize_tensor(weight, Scheme(bits=3))
    assert same(found, quantize_tensor(weight.float(), Scheme(bits=3)))
    assert found.dequantize().dtype == torch.float32
    assert torch.equal(found.dequantize(dtype), found.dequantize().to(dtype))
    assert found.weight.device == weight.device


def test_input_may_be_a_transposed_parameter():
    weight = torch.nn.Parameter(gaussian(5, 33).t())
    found = quantize_tensor(weight, Scheme())
    assert same(found, quantize_tensor(weight.detach().contiguous(), Scheme()))
    assert not any(tensor.requires_grad for tensor in found.to_tensors().values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_counted(value):
    weight = gaussian(4, 4)
    weight[1, 2] = weight[3, 3] = value
    with pytest.raises(WeightError, match="2 of 16 weights are NaN or infinite"):
        quantize_tensor(weight, Scheme())


def test_weights_that_cannot_be_stored_are_refused():
    for shape in ((6,), (2, 3, 4)):
        with pytest.raises(WeightError, match=re.escape(f"a matrix [out, in], its shape is {list(shape)}")):
            quantize_tensor(torch.ones(shape), Scheme())
    with pytest.raises(WeightError, match=r"empty, shape \[0, 4\]"):
        quantize_tensor(torch.zeros(0, 4), Scheme())
    with pytest.raises(WeightError, match=r"7e\+04 exceeds the float16 range"):
        quantize_tensor(torch.tensor([[7e4, 1.0, 1.0, 1.0]]), Scheme(outliers=OutlierRule("magnitude", 0.25)))
    with pytest.raises(WeightError, match="float16 range; use the granularity `channel`"):
        quantize_tensor(torch.full((1, 2), 1e7), Scheme(granularity="group", group_size=2, outliers=None))


def test_a_group_that_does_not_divide_is_refused_with_both_numbers():
    with pytest.raises(SchemeError, match="group size 64 does not divide the input width 100"):
        quantize_tensor(gaussian(4, 100), Scheme(granularity="group", group_size=64))


NAMES = ["weight", "scale", "zero_point", "outlier_ptr", "outlier_col", "outlier_value"]


@pytest.mark.parametrize("rule", [OutlierRule(share=0.1), OutlierRule("tail", None, 1.5)], ids=["share", "sigma"])
@pytest.mark.parametrize("name", NAMES)
def test_a_missing_or_misshapen_tensor_is_named(name, rule):
    scheme = Scheme(symmetric=False, outliers=rule)
    tensors = quantize_tensor(gaussian(4, 10), scheme).to_tensors()
    assert list(tensors) == NAMES
    with pytest.raises(CheckpointError, match=f"lacks '{name}'"):
        QuantizedTensor.from_tensors({n: t for n, t in tensors.items() if n != name}, scheme, (4, 10))
    for wrong in (tensors[name].to(torch.int64), tensors[name][:, None], tensors[name][None]):
        with pytest.raises(CheckpointError, match=f"'{name}' is .* expected"):
            QuantizedTensor.from_tensors({**tensors, name: wrong}, scheme, (4, 10))


def test_a_static_step_of_the_inputs_is_part_of_the_payload():
    scheme, step = Scheme.parse("w4a8s"), torch.tensor([0.02])
    tensors = quantize_tensor(gaussian(4, 10), scheme, input_scale=step).to_tensors()
    assert tensors["input_scale"].item() == step.item()
    assert {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()} == tensor_specs(scheme, (4, 10))
    assert QuantizedTensor.from_tensors(tensors, scheme, (4, 10)).input_scale is tensors["input_scale"]
    with pytest.raises(CheckpointError, match="lacks 'input_scale'"):
        QuantizedTensor.from_tensors({n: t for n, t in tensors.items() if n != "input_scale"}, scheme, (4, 10))


@pytest.mark.parametrize(("scheme", "step"), [("w4a8s", None), ("w4a8", torch.ones(1)), ("w4", torch.ones(1))])
def test_a_step_of_the_inputs_where_none_belongs_or_none_where_one_does(scheme, step):
    with pytest.raises(SchemeError, match="a step of the inputs is for static activations, and they need one"):
        quantize_tensor(gaussian(4, 10), Scheme.parse(scheme), input_scale=step)


def test_specs_of_a_sigma_threshold_need_the_count():
    scheme = replace(Scheme(), outliers=OutlierRule("tail", None, 3.0))
    with pytest.raises(SchemeError, match="depends on the weights"):
        tensor_specs(scheme, (4, 10))
    assert tensor_specs(scheme, (4, 10), 3)["outlier_value"] == (torch.float16, (3,))


@pytest.mark.parametrize("scheme", ["w2", "w3g16o2", "w8t", "w4o0"])
def test_the_error_is_that_of_the_dequantized_weight(scheme):
    weight = torch.randn(24, 48, generator=torch.Generator().manual_seed(0)) ** 3
    tensor, error = quantize_with_error(weight, Scheme.parse(scheme))
    assert error == pytest.approx(float((weight - tensor.dequantize()).norm() / weight.norm()), rel=1e-5)


def test_a_weight_of_zeros_has_no_error():
    assert quantize_with_error(torch.zeros(4, 8), Scheme())[1] == 0.0
