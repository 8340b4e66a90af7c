import pytest
import torch

from lowbit.kernels.planes import pack_planes, unpack_planes


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 15, 64, 1001])
def test_what_was_packed_comes_out_again(bits, count):
    draw = torch.Generator().manual_seed(bits)
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (count,), generator=draw).to(torch.int8)
    packed = pack_planes(values, bits)
    assert packed.dtype == torch.int8
    assert packed.numel() == -(-count // 8) * bits
    assert torch.equal(unpack_planes(packed, bits, torch.full_like(values, 99)), values)


def test_every_value_has_a_code_of_its_own():
    for bits in range(2, 9):
        values = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).to(torch.int8).repeat(8)
        assert torch.equal(unpack_planes(pack_planes(values, bits), bits, torch.empty_like(values)), values)
