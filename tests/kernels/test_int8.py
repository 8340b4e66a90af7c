import itertools

import pytest
import torch
import torch.nn.functional as F

from lowbit.kernels import ACTIVATIONS, KERNELS, best_kernel, fold, int8_linear, native, pack_weight
from lowbit.kernels.fold import Folded, entries
from lowbit.kernels.int8 import round_rows
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import Scheme

AVAILABLE = {
    **{level: native.library(level) is not None for level in native.LEVELS},
    "onednn": torch.cpu._is_avx2_supported() and torch.backends.mkldnn.is_available(),
}
FAST = [
    pytest.param(name, marks=pytest.mark.skipif(not here, reason=f"this machine lacks {name}"))
    for name, here in AVAILABLE.items()
]
SHAPES = [(16, 16), (48, 32), (33, 17), (1, 1), (7, 130), (100, 40), (130, 768)]
TOKENS = [0, 1, 2, 5, 129, 512]


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def packed(shape, kernel, scheme="w4", seed=0):
    """One weight for a kernel and the same for the reference, with an outlier beyond every code."""
    weight = gaussian(*shape, seed=seed) * 0.05
    weight[0, -1] = 40.0
    tensor = quantize_tensor(weight, Scheme.parse(scheme))
    folded, bias = fold(tensor, KERNELS[kernel].limits), gaussian(shape[0], seed=1)
    return pack_weight(folded, bias, kernel), pack_weight(folded, bias, "reference"), tensor, bias


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("scheme", ["w4", "w5", "w8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_kernel_computes_what_the_reference_does(kernel, scheme, shape):
    weight, reference, _, _ = packed(shape, kernel, scheme)
    for tokens, activation in itertools.product(TOKENS, ACTIVATIONS):
        x = gaussian(tokens, shape[1], seed=tokens)
        found, expected = int8_linear(x, weight, activation), int8_linear(x, reference, activation)
        assert found.shape == (tokens, shape[0])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_reference_is_the_product_with_rounded_inputs():
    _, weight, tensor, bias = packed((33, 40), "reference")
    x = gaussian(9, 40, seed=3)
    codes, step, zero = round_rows(x)
    rounded = (codes.float() - zero) * step
    assert ((rounded - x).abs() <= step * 0.501).all()
    folded = KERNELS["reference"].view(weight.packed).view(33, 40) * weight.scale[:33, None]
    folded.view(-1)[weight.rest.rows() * 40 + weight.rest.col] += weight.rest.value
    expected = F.linear(rounded, folded, bias)
    expected[:, 0] += (x - rounded)[:, -1] * weight.rest.value[0]  # what is kept apart multiplies the input itself
    torch.testing.assert_close(int8_linear(x, weight), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(int8_linear(x, weight), F.linear(x, tensor.dequantize(), bias), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kernel", FAST)
def test_the_largest_codes_and_inputs_do_not_saturate(kernel):
    """Without VNNI two products are added in 16 bits: the largest of all must not reach their end."""
    x = torch.full((5, 64), 1.0)
    for limit, sign in itertools.product(KERNELS[kernel].limits, (1, -1)):
        codes = torch.full((16, 64), sign * limit, dtype=torch.int8)
        rest = entries(torch.empty(0, dtype=torch.int64), torch.empty(0), (16, 64))
        weight = pack_weight(Folded(codes, limit, torch.ones(16), rest, 0.0, 16), None, kernel)
        torch.testing.assert_close(int8_linear(x, weight), torch.full((5, 16), sign * limit * 64.0))


@pytest.mark.parametrize("kernel", [*FAST, "reference"])
def test_rows_of_zeros_and_values_that_are_not_finite(kernel):
    weight = packed((20, 24), kernel)[0]
    x = gaussian(4, 24)
    x[1], x[2, 3], x[3, 0] = 0, torch.nan, torch.inf
    for activation in ACTIVATIONS:
        y = int8_linear(x, weight, activation)
        assert y[:2].isfinite().all()
        assert y[2:].isnan().all()
    assert torch.equal(int8_linear(x, weight)[1], weight.bias[:20])


@pytest.mark.parametrize("kernel", [*FAST, "reference"])
@pytest.mark.parametrize("shape", [(48, 32), (33, 17)], ids=str)
def test_packed_codes_are_found_by_row_and_column(kernel, shape):
    codes = torch.randint(-32, 33, shape, generator=torch.Generator().manual_seed(0)).to(torch.int8)
    weight = pack_weight(Folded(codes, 32, torch.ones(shape[0]), fold_nothing(shape), 0.0, 0), None, kernel)
    rows, columns = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    view = KERNELS[kernel].view(weight.packed)
    assert torch.equal(view[KERNELS[kernel].places(rows, columns, shape)], codes)
    view[KERNELS[kernel].places(torch.tensor([1]), torch.tensor([2]), shape)] = 7
    x = torch.zeros(1, shape[1])
    x[0, 2] = 1
    weight.sums[1] += 7 - int(codes[1, 2])
    KERNELS[kernel].note_sums(weight.packed, weight.sums, shape)
    assert int8_linear(x, weight)[0, 1] == pytest.approx(7)


def fold_nothing(shape):
    return entries(torch.empty(0, dtype=torch.int64), torch.empty(0), shape)


@pytest.mark.parametrize("kernel", FAST)
def test_a_row_does_not_depend_on_its_neighbours_or_the_threads(kernel, with_threads):
    weight = packed((48, 64), kernel)[0]
    x = gaussian(200, 64)
    one, two = with_threads(lambda: int8_linear(x, weight, "gelu"))
    assert torch.equal(one, two)
    assert torch.equal(int8_linear(x[7:8], weight, "gelu"), one[7:8])


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("tokens", [3, 301, 700])
def test_more_threads_than_there_is_work_for(kernel, tokens, with_threads):
    weight, x = packed((48, 64), kernel)[0], gaussian(tokens, 64)
    expected, found = with_threads(lambda: int8_linear(x, weight), (1, 16))
    assert torch.equal(found, expected)


def test_the_choice_of_the_kernel_says_why(monkeypatch):
    name, why = best_kernel()
    assert name in KERNELS
    assert why
    here = {"avx2", "vnni"}
    monkeypatch.setattr("lowbit.kernels.int8.supported", lambda level: level in here)
    monkeypatch.setattr("lowbit.kernels.int8.library", lambda level: level)
    assert best_kernel() == ("vnni", "the processor adds four products at a time")
    here.remove("vnni")
    assert best_kernel()[0] == "avx2"
    monkeypatch.setattr("lowbit.kernels.int8.library", lambda level: None)
    monkeypatch.setattr("lowbit.kernels.int8.absence", lambda level: f"no C compiler for {level}; install gcc")
    monkeypatch.setattr("torch.cpu._is_avx2_supported", lambda: True)
    assert best_kernel() == ("onednn", "there are no C kernels: no C compiler for avx2; install gcc")
    monkeypatch.setattr("torch.cpu._is_avx2_supported", lambda: False)
    assert best_kernel()[0] == "reference"


def test_kernels_for_instructions_that_are_not_here_are_not_built(monkeypatch):
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: False)
    assert not native.supported("vnni")
    assert not native.supported("amx")
    monkeypatch.setattr("lowbit.kernels.native.supported", lambda level: False)
    assert native._built.__wrapped__("amx") == (None, "the C kernels are for Linux on x86 with AMX")


@pytest.mark.skipif(not AVAILABLE["avx2"], reason="this machine has no AVX2 or no C compiler")
@pytest.mark.parametrize(("compiler", "said"), [("/nowhere/cc", "cannot compile"), ("false", "cannot compile")])
def test_a_compiler_that_fails_is_named(monkeypatch, compiler, said):
    monkeypatch.setenv("CC", compiler)
    library, absence = native._built.__wrapped__("avx2")
    assert library is None
    assert absence.startswith(compiler)
    assert said in absence
    monkeypatch.delenv("CC")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert native._built.__wrapped__("avx2") == (None, "no C compiler; install gcc")
