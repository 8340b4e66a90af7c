import copy
import threading

import pytest
import torch

from lowbit.kernels import (
    has_scratch,
    pack_scratch,
    round_static,
    round_tokens,
    scratch_limit,
    scratch_linear,
    scratch_linear_reference,
    static_codes,
    token_codes,
)

pytestmark = pytest.mark.skipif(not has_scratch(), reason="oneDNN has no int8 product here")


def weight(shape, bits, *, odd=False, outliers=0.02, seed=0):
    """Int8 codes that fit ``bits`` bits, some of them replaced by larger ones."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, generator=draw)
    codes = codes * 2 + 1 if odd else codes
    limit = scratch_limit()
    large = torch.randint(-limit, limit + 1, shape, generator=draw)
    return torch.where(torch.rand(shape, generator=draw) < outliers, large, codes.clamp(-limit, limit)).to(torch.int8)


@pytest.mark.parametrize(("bits", "odd"), [(2, False), (2, True), (3, False), (4, False), (8, False)])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 33), (64, 32), (129, 96)])
@pytest.mark.parametrize("tokens", [1, 2, 17, 512])
def test_the_product_is_that_of_the_reference(bits, odd, shape, tokens):
    codes = weight(shape, bits, odd=odd)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, shape[1], generator=draw)
    scale, bias = torch.rand(shape[0], generator=draw) + 0.1, torch.randn(shape[0], generator=draw)
    packed = pack_scratch(codes, bits, odd=odd)
    for term in (bias, None):
        expected = scratch_linear_reference(x, codes, scale, term)
        torch.testing.assert_close(scratch_linear(x, packed, scale, term), expected, rtol=1e-5, atol=1e-4)


def test_no_tokens_give_no_rows():
    found = scratch_linear(torch.empty(0, 8), pack_scratch(weight((4, 8), 4), 4), torch.ones(4), None)
    assert found.shape == (0, 4)


def test_the_largest_codes_do_not_saturate():
    codes = torch.full((16, 64), scratch_limit(), dtype=torch.int8)
    x = torch.cat([torch.ones(1, 64), -torch.ones(1, 64)])
    found = scratch_linear(x, pack_scratch(codes, 4), torch.ones(16), None)
    torch.testing.assert_close(found, 64.0 * scratch_limit() * torch.tensor([[1.0], [-1.0]]).expand(2, 16))


def test_weights_of_one_shape_do_not_disturb_each_other():
    x, scale = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), torch.ones(8)
    both = [weight((8, 16), 4, seed=seed) for seed in (1, 2)]
    packed = [pack_scratch(codes, 4) for codes in both]
    for index in (0, 1, 0):
        expected = scratch_linear_reference(x, both[index], scale, None)
        torch.testing.assert_close(scratch_linear(x, packed[index], scale, None), expected)


def test_threads_have_weights_of_their_own():
    x, scale = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)), torch.ones(64)
    wrong = []

    def run(seed):
        codes = weight((64, 64), 4, seed=seed)
        packed, expected = pack_scratch(codes, 4), scratch_linear_reference(x, codes, scale, None)
        wrong.extend(
            seed for _ in range(50) if not torch.allclose(scratch_linear(x, packed, scale, None), expected, atol=1e-3)
        )

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(("bits", "most"), [(2, 0.36), (3, 0.48), (4, 0.6), (8, 1.0)])
def test_memory_is_that_of_the_bits(bits, most):
    packed = pack_scratch(weight((256, 512), bits, outliers=0.01), bits)
    kernel_terms = 4 * 256 * 5 / (256 * 512)  # some processors' kernels keep a sum of each row
    assert packed.nbytes / (256 * 512) < most + kernel_terms


def test_a_copy_computes_the_same():
    for bits in (4, 8):
        packed = pack_scratch(weight((8, 16), bits), bits)
        x = torch.ones(1, 16)
        assert torch.equal(
            scratch_linear(x, copy.deepcopy(packed), torch.ones(8), None),
            scratch_linear(x, packed, torch.ones(8), None),
        )


def test_token_codes_are_rounded_tokens():
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * 10
    x[3] = 0
    codes, step = token_codes(x)
    assert codes.dtype == torch.uint8
    assert torch.equal((codes.float() - 128) * step, round_tokens(x))


def test_static_codes_are_rounded_by_the_step_and_a_nan_stays_one():
    x, step = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0.02])
    codes, steps = static_codes(x, step)
    assert (x.abs() > 128 * step).any()
    assert torch.equal((codes.float() - 128) * steps, round_static(x, step))
    x[3, 5] = torch.nan
    assert static_codes(x, step)[1].isnan()[:, 0].nonzero().tolist() == [[3]]
