import itertools

import pytest
import torch

from lowbit.kernels import KERNELS, EncoderLayer, Norm, encoder, encoder_layer, encoder_layer_reference, fold, native
from lowbit.kernels.int8 import pack_weight
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import Scheme

LEVELS = [
    pytest.param(level, marks=pytest.mark.skipif(native.library(level) is None, reason=f"this machine lacks {level}"))
    for level in native.LEVELS
]
# A value on the edge of two codes may take the other one; bfloat16 between the parts, for AVX512, costs thousandths.
TOLERANCE = {"avx2": 3e-4, "vnni": 0.01, "amx": 0.01}


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_layer(kernel, hidden=64, heads=2, inner=160, activation="gelu"):
    """A layer whose weights differ from each other, with outliers that no code reaches."""

    def weight(out_features, in_features, seed):
        values = gaussian(out_features, in_features, seed=seed) / in_features**0.5
        values[1, 2] = 30.0
        folded = fold(quantize_tensor(values, Scheme.parse("w4")), KERNELS[kernel].limits)
        return pack_weight(folded, gaussian(out_features, seed=seed + 50) * 0.2, kernel)

    shapes = [(hidden, hidden)] * 4 + [(inner, hidden), (hidden, inner)]
    norms = [Norm(1 + gaussian(hidden, seed=n) * 0.3, gaussian(hidden, seed=n + 1), 1e-5) for n in (90, 95)]
    weights = [weight(*shape, seed) for seed, shape in enumerate(shapes)]
    return EncoderLayer(*weights, *norms, heads, (hidden // heads) ** -0.5, activation)


def difference(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("hidden", "heads"), [(64, 2), (64, 1), (128, 4), (48, 3)])
def test_a_layer_is_what_its_parts_are(level, hidden, heads):
    """Heads of 32, 64 and 16: the last ones go through the attention of torch."""
    layer = make_layer(level, hidden, heads)
    for batch, length in itertools.product([1, 3], [1, 2, 17, 32, 45, 512]):
        x = gaussian(batch, length, hidden, seed=length)
        found, expected = encoder_layer(x, layer), encoder_layer_reference(x, layer)
        assert found.shape == x.shape
        assert difference(found, expected) < TOLERANCE[level], (batch, length)


@pytest.mark.parametrize("level", LEVELS)
def test_masks_of_keys_and_of_each_query(level):
    layer = make_layer(level)
    x, padding = gaussian(3, 40, 64), torch.ones(3, 1, 1, 40, dtype=torch.bool)
    padding[0, ..., 7:], padding[2, ..., :30] = False, False
    causal = torch.ones(40, 40, dtype=torch.bool).tril().expand(3, 1, 40, 40)
    unmasked = encoder_layer(x, layer)
    for mask in (padding, causal, padding & causal | torch.eye(40, dtype=torch.bool), padding.expand(3, 1, 40, 40)):
        found, expected = encoder_layer(x, layer, mask), encoder_layer_reference(x, layer, mask)
        if mask[0, 0, 0].sum() < 40:
            found, expected = found[padding[:, 0, 0]], expected[padding[:, 0, 0]]
        assert difference(found, expected) < TOLERANCE[level]
        assert difference(found, unmasked.view(-1, 64)[: len(found)].view(found.shape)) > 0.01
    assert torch.equal(encoder_layer(x[1:2], layer, padding[1:2]), unmasked[1:2])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("heads", [2, 4])
def test_padding_is_left_out(level, heads):
    """Each sequence is what it is alone, wherever its padding is, and padding is zeros; in one pass and in several."""
    layer = make_layer(level, heads=heads)
    x, mask = gaussian(21, 90, 64), torch.zeros(21, 1, 90, 90, dtype=torch.bool)
    for row in range(21):
        mask[row, :, :, row : row + 3 * row + 1] = True
    found = encoder_layer(x, layer, mask)
    for row in range(21):
        own = slice(row, row + 3 * row + 1)
        alone = encoder_layer(x[row : row + 1, own], layer)
        torch.testing.assert_close(found[row, own], alone[0], rtol=0, atol=1e-5)
        assert found[row].count_nonzero(dim=1).bool().sum() == 3 * row + 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_mask_that_was_written_to_is_read_again(mode):
    with mode():
        check_a_mask_that_is_written_to()


def check_a_mask_that_is_written_to():
    layer, x = make_layer("reference"), gaussian(2, 8, 64)
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    mask[..., 4:] = False
    first = encoder_layer(x, layer, mask)
    mask[..., 4:6] = True
    second = encoder_layer(x, layer, mask)
    assert [int(y[0].count_nonzero(dim=1).bool().sum()) for y in (first, second)] == [4, 6]
    assert torch.equal(second[:, :6], encoder_layer(x[:, :6], layer))


def test_a_sequence_that_may_look_at_nothing_is_no_error():
    layer, x = make_layer("reference"), gaussian(2, 8, 64)
    mask = torch.ones(2, 1, 1, 8, dtype=torch.bool)
    mask[1] = False
    assert torch.equal(encoder_layer(x, layer, mask)[:1], encoder_layer(x[:1], layer))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("activation", ["relu", "none"])
def test_other_activations(level, activation):
    layer = make_layer(level, activation=activation)
    x = gaussian(2, 9, 64)
    assert difference(encoder_layer(x, layer), encoder_layer_reference(x, layer)) < TOLERANCE[level]


@pytest.mark.parametrize("level", LEVELS)
def test_a_token_that_is_not_finite_is_not_hidden(level):
    layer = make_layer(level)
    x = gaussian(2, 20, 64)
    x[1, 3, 5] = torch.nan
    found = encoder_layer(x, layer)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()  # every token of the sequence looks at it


@pytest.mark.parametrize("level", LEVELS)
def test_a_sequence_does_not_depend_on_its_neighbours_or_the_threads(level, with_threads):
    layer = make_layer(level)
    x = gaussian(40, 33, 64)  # more than one pass
    one, two = with_threads(lambda: encoder_layer(x, layer))
    assert torch.equal(one, two)
    assert torch.equal(encoder_layer(x[37:38], layer), one[37:38])
    assert difference(one, encoder_layer_reference(x, layer)) < TOLERANCE[level]


@pytest.mark.parametrize("level", LEVELS)
def test_many_threads_have_room_of_their_own(level, with_threads):
    layer, x = make_layer(level), gaussian(1, 301, 64)
    expected, found = with_threads(lambda: encoder_layer(x, layer), (1, 8))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("level", LEVELS)
def test_no_tokens(level):
    layer = make_layer(level)
    assert encoder_layer(torch.empty(0, 5, 64), layer).shape == (0, 5, 64)
    assert encoder_layer(torch.empty(2, 0, 64), layer).shape == (2, 0, 64)


def test_other_kernels_run_the_parts():
    layer, x = make_layer("reference"), gaussian(2, 6, 64)
    assert torch.equal(encoder_layer(x, layer), encoder_layer_reference(x, layer))


@pytest.mark.parametrize("level", LEVELS)
def test_memory_between_the_parts_is_kept_for_the_next_layer(level):
    layer, x = make_layer(level), gaussian(2, 6, 64)
    encoder_layer(x, layer)
    first = encoder._room.buffer.data_ptr()
    encoder_layer(x, layer)
    assert encoder._room.buffer.data_ptr() == first
    encoder_layer(gaussian(1, 7, 64), layer)
    assert encoder._room.buffer.data_ptr() == first
    encoder_layer(gaussian(4, 200, 64), layer)
    assert encoder._room.tokens >= 800
