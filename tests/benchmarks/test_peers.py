import peers
import pytest
import torch


def test_stored_bits_count_every_byte_in_memory():
    tensors = (torch.zeros(3, dtype=torch.uint8), torch.zeros(2, dtype=torch.float16), torch.zeros(()))
    assert peers.stored_bits(*tensors) == 3 * 8 + 2 * 16 + 32


def test_a_library_that_is_not_installed_has_no_version():
    assert peers.Peer("no-such-package", "w4", lambda weight: (weight, 0)).version is None
    assert peers.Peer("torch", "w4", lambda weight: (weight, 0)).version is not None


def test_options_are_named_once():
    names = [(peer.package, peer.option) for peer in peers.PEERS]
    assert len(set(names)) == len(names)


# Bits per weight of a 64 x 128 matrix by each library's own layout: codes, then step sizes and zeros.
BITS = {
    ("hqq", "4 bits, groups of 64"): 4 + 32 / 64,
    ("hqq", "2 bits, groups of 64"): 2 + 32 / 64,
    ("bitsandbytes", "nf4"): 4 + 32 / 64,
    ("bitsandbytes", "nf4, double quantization"): 4 + 8 / 64 + 2 * 32 / (64 * 128),
    ("torchao", "int8"): 8 + 32 / 128,
    ("torchao", "int3, groups of 64"): 3 + 16 / 64,
    ("torchao", "int3, groups of 64, asymmetric"): 3 + 24 / 64,
}


@pytest.mark.parametrize("name", BITS, ids=" ".join)
def test_what_an_installed_library_stores(name):
    peer = next(peer for peer in peers.PEERS if (peer.package, peer.option) == name)
    if peer.version is None:
        pytest.skip(f"{peer.package} is not installed (extra `bench`)")
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).half()
    found, bits = peer.quantize(weight)
    assert bits / weight.numel() == pytest.approx(BITS[name])
    assert found.shape == weight.shape
    assert 0 < float((found.float() - weight.float()).norm() / weight.float().norm()) < 0.6
