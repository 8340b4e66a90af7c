import pytest
import torch

from lowbit.scheme import Scheme
from lowbit.strategies.grid import (
    Fit,
    as_stored,
    block_range,
    decode,
    encode,
    from_range,
    group_sum,
    limits,
    mean_and_std,
    round_trip,
    to_blocks,
)

ASYMMETRIC = Scheme(bits=3, symmetric=False)


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("scheme", "shape"),
    [
        (Scheme(granularity="tensor"), (1, 4, 6)),
        (Scheme(), (4, 1, 6)),
        (Scheme(granularity="group", group_size=3), (8, 1, 3)),
    ],
    ids=["tensor", "channel", "group"],
)
def test_blocks_are_a_view_in_row_major_order(scheme, shape):
    weight = torch.arange(24.0).view(4, 6)
    blocks = to_blocks(weight, scheme)
    assert blocks.shape == shape
    assert blocks.data_ptr() == weight.data_ptr()
    assert torch.equal(blocks.flatten(), weight.flatten())


@pytest.mark.parametrize(
    ("scheme", "decoded"),
    [
        (Scheme(bits=2, levels="midrise"), [-1.5, -0.5, 0.5, 1.5]),
        (Scheme(bits=2, levels="full"), [-2, -1, 0, 1]),
        (Scheme(bits=3, levels="full"), [-4, -3, -2, -1, 0, 1, 2, 3]),
    ],
    ids=str,
)
def test_levels_of_symmetric_grids(scheme, decoded):
    steps = torch.tensor(decoded)[None, None] * 0.25
    fit = Fit(torch.tensor([0.25]))
    assert encode(steps, scheme, fit).flatten().tolist() == list(range(2**scheme.bits))
    assert torch.equal(round_trip(steps, scheme, fit), steps)
    assert limits(scheme) == (-decoded[0], decoded[-1])


def test_levels_of_an_asymmetric_grid():
    scale, zero_point = torch.tensor([0.5, 2.0]), torch.tensor([0, 5], dtype=torch.uint8)
    decoded = torch.stack([torch.arange(8.0) * 0.5, (torch.arange(8.0) - 5) * 2])[:, None]
    assert torch.equal(round_trip(decoded, ASYMMETRIC, Fit(scale, zero_point)), decoded)


def test_values_outside_the_grid_are_clipped_and_inside_rounded_to_the_nearest():
    values = torch.tensor([[[-9.0, 9.0, 0.49, 0.51, -1.6]]])
    assert round_trip(values, Scheme(bits=3), Fit(torch.ones(1))).flatten().tolist() == [-4, 3, 0, 1, -2]


CODEBOOK = Fit(torch.tensor([1.0, 2.0]), codebook=torch.tensor([[-1.0, 0.0, 0.5, 3.0], [-0.5, -0.25, 0.25, 0.5]]))


def test_levels_of_codebooks_are_their_entries_times_the_step():
    scheme = Scheme(bits=2, levels="codebook")
    decoded = decode(torch.arange(4.0).expand(2, 1, 4).clone(), scheme, CODEBOOK)
    assert decoded.tolist() == [[[-1, 0, 0.5, 3]], [[-1, -0.5, 0.5, 1]]]
    assert torch.equal(round_trip(decoded, scheme, CODEBOOK), decoded)


def test_the_nearest_entry_is_taken_from_a_codebook_of_ones_own_or_a_shared_one():
    blocks = gaussian(2, 3, 7)
    for books in (CODEBOOK.codebook, CODEBOOK.codebook[:1]):
        entries = books[:, None, None] * CODEBOOK.scale[:, None, None, None]
        nearest = (blocks[..., None] - entries).abs().argmin(dim=3)
        fit = Fit(CODEBOOK.scale, codebook=books)
        assert torch.equal(encode(blocks, Scheme(bits=2, levels="codebook"), fit), nearest.float())


def test_the_stored_form_has_16_bits_for_the_steps_of_groups_and_for_codebooks():
    fit = Fit(torch.tensor([0.1, 1e-12]), codebook=torch.tensor([[0.1]]))
    half = torch.tensor(0.1).half().float().item()
    group = as_stored(fit, Scheme(granularity="group", group_size=2))
    assert group.scale.tolist() == [half, 2**-24]
    channel = as_stored(fit, Scheme())
    assert torch.equal(channel.scale, fit.scale)
    assert channel.codebook.item() == half


@pytest.mark.parametrize("scheme", [Scheme(bits=2), Scheme(bits=3), ASYMMETRIC], ids=str)
@pytest.mark.parametrize("function", [encode, round_trip])
def test_the_weights_are_not_changed(function, scheme):
    blocks = gaussian(2, 1, 8)
    before = blocks.clone()
    function(blocks, scheme, from_range(*block_range(blocks), scheme))
    assert torch.equal(blocks, before)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (-3.0, 1.0), (1.0, 3.0), (-3.0, -1.0), (-3.0, 0.0), (0.0, 3.0)])
@pytest.mark.parametrize("scheme", [Scheme(bits=2), Scheme(bits=2, levels="full"), Scheme(), ASYMMETRIC], ids=str)
def test_the_grid_of_a_range_reaches_both_ends(scheme, low, high):
    low, high = torch.tensor([low]), torch.tensor([high])
    fit = from_range(low, high, scheme)
    scale, zero_point = fit.scale, fit.zero_point
    ends = torch.stack([low, high], dim=1)[:, None]
    error = (round_trip(ends, scheme, fit) - ends).abs().max()
    assert float(error) <= float(scale) / 2 * (1 + 1e-6)
    if zero_point is None:  # and no smaller step would do
        negative, positive = limits(scheme)
        assert float(scale) == pytest.approx(max(float(high) / positive, -float(low) / negative, 0))
    else:
        assert float(scale) == pytest.approx((max(float(high), 0) - min(float(low), 0)) / 7)
        assert zero_point.dtype == torch.uint8


@pytest.mark.parametrize("scheme", [Scheme(), ASYMMETRIC], ids=str)
def test_an_empty_range_gets_step_1(scheme):
    zeros = torch.zeros(3, 1, 4)
    fit = from_range(*block_range(zeros), scheme)
    assert fit.scale.tolist() == [1, 1, 1]
    assert not round_trip(zeros, scheme, fit).any()


def test_block_range():
    low, high = block_range(torch.tensor([[[1.0, -2.0], [5.0, 0.0]], [[3.0, 3.0], [4.0, 3.5]]]))
    assert low.tolist() == [-2, 3]
    assert high.tolist() == [5, 4]


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 2, 5), (1, 40_001, 2), (1, 1, 40_001), (2, 1, 40_001), (1, 1, 100_001)], ids=str
)
def test_group_sum_is_the_sum_for_every_number_of_threads(shape, with_threads):
    values = gaussian(*shape)
    one, two = with_threads(lambda: group_sum(values))
    assert torch.equal(one, two)
    assert one.shape == shape[:1]
    torch.testing.assert_close(one.double(), values.double().sum(dim=(1, 2)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 1, 50), (1, 20, 50)], ids=["channel", "tensor"])
def test_mean_and_deviation_leave_out_what_is_not_kept(shape):
    weight = gaussian(*shape) + 3
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.2
    before = weight.masked_fill(~keep, 0)
    blocks = before.clone()
    mean, std = mean_and_std(blocks, keep)
    assert torch.equal(blocks, before)
    kept = [block[mask].double() for block, mask in zip(weight, keep, strict=True)]
    torch.testing.assert_close(mean, torch.stack([k.mean() for k in kept]))
    torch.testing.assert_close(std, torch.stack([k.std(correction=0) for k in kept]))
    everything = mean_and_std(weight, None)
    torch.testing.assert_close(everything[0], weight.double().mean(dim=(1, 2)))
    torch.testing.assert_close(everything[1], weight.double().std(dim=(1, 2), correction=0))


def test_deviation_of_a_group_of_which_nothing_is_kept_is_zero():
    assert mean_and_std(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4, dtype=torch.bool))[1].tolist() == [0]
