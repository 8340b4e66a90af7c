import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.packing import pack, packed_size, unpack

BITS = range(2, 9)


@st.composite
def codes(draw):
    """A width and codes of that width, in up to three dimensions."""
    bits = draw(st.integers(2, 8))
    shape = draw(st.lists(st.integers(0, 11), min_size=1, max_size=3))
    count = torch.Size(shape).numel()
    values = draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    return bits, torch.tensor(values, dtype=torch.uint8).view(shape)


def slow_pack(values, bits):
    """Bit by bit, as the module's docstring defines the stream."""
    stream = bytearray((len(values) * bits + 7) // 8)
    for index, value in enumerate(values):
        for bit in range(bits):
            position = index * bits + bit
            stream[position // 8] |= (value >> bit & 1) << (position % 8)
    return list(stream)


@given(codes())
def test_pack_is_the_documented_bit_stream(case):
    bits, values = case
    packed = pack(values, bits)
    assert packed.dtype == torch.uint8
    assert packed.dim() == 1
    assert packed.tolist() == slow_pack(values.flatten().tolist(), bits)


@given(codes())
def test_round_trip(case):
    bits, values = case
    packed = pack(values, bits)
    assert packed.numel() == packed_size(values.numel(), bits) == -(-values.numel() * bits // 8)
    found = unpack(packed, bits, values.numel())
    assert found.dtype == torch.uint8
    assert torch.equal(found, values.flatten())


@pytest.mark.parametrize("bits", BITS)
def test_all_lengths_around_a_block_with_all_bits_set(bits):
    for count in range(26):
        values = torch.full((count,), 2**bits - 1, dtype=torch.uint8)
        packed = pack(values, bits)
        assert int.from_bytes(bytes(packed.tolist()), "little") == 2 ** (count * bits) - 1
        assert torch.equal(unpack(packed, bits, count), values)


@pytest.mark.parametrize("bits", BITS)
def test_the_input_is_neither_changed_nor_shared(bits):
    values = (torch.arange(40) % 2**bits).to(torch.uint8)
    before = values.clone()
    packed = pack(values, bits)
    packed.zero_()
    assert torch.equal(values, before)


@pytest.mark.parametrize("bits", BITS)
def test_a_transposed_view_is_packed_in_its_own_order(bits):
    values = (torch.arange(35) % 2**bits).to(torch.uint8).view(5, 7).t()
    assert torch.equal(pack(values, bits), pack(values.contiguous(), bits))
