from copy import deepcopy

import pytest
import torch
from torch import nn

from lowbit.nn import QuantEmbedding, TiedQuantEmbedding
from lowbit.qtensor import QuantizedTensor, quantize_tensor
from lowbit.scheme import OutlierRule, Scheme

ROWS = 13
IDS = torch.tensor([[3, 0, 12], [3, 7, 1]])


def table(width, **fields):
    weight = torch.randn(ROWS, width, generator=torch.Generator().manual_seed(0))
    return quantize_tensor(weight, Scheme(**{"outliers": None, **fields}))


@pytest.mark.parametrize("outliers", [None, OutlierRule(share=0.05)], ids=["", "outliers"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(
    ("width", "step"),
    [
        (16, {"granularity": "channel"}),
        (15, {"granularity": "channel"}),
        (1, {"granularity": "channel"}),
        (16, {"granularity": "tensor"}),
        (24, {"granularity": "group", "group_size": 8}),
        (15, {"granularity": "group", "group_size": 5}),
    ],
    ids=["channel", "odd", "one column", "tensor", "group", "odd group"],
)
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_rows_are_those_of_the_table(bits, width, step, symmetric, outliers):
    tensor = table(width, bits=bits, symmetric=symmetric, outliers=outliers, **step)
    module = QuantEmbedding(tensor)
    assert torch.equal(module(IDS), tensor.dequantize()[IDS])
    assert torch.equal(module.bfloat16()(IDS), tensor.dequantize(torch.bfloat16)[IDS])


@pytest.mark.parametrize("levels", ["codebook", "shared-codebook"])
@pytest.mark.parametrize(
    ("width", "step"),
    [(16, {}), (15, {}), (16, {"granularity": "tensor"}), (24, {"granularity": "group", "group_size": 8})],
    ids=["channel", "odd", "tensor", "group"],
)
def test_rows_of_codebooks_are_those_of_the_table(width, step, levels):
    tensor = table(width, bits=4, strategy="kmeans", levels=levels, **step)
    assert torch.equal(QuantEmbedding(tensor)(IDS), tensor.dequantize()[IDS])


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 8},
        {"bits": 4},
        {"bits": 3},
        {"strategy": "kmeans"},
        {"strategy": "kmeans", "levels": "shared-codebook"},
        {"strategy": "kmeans", "granularity": "group", "group_size": 4},
    ],
    ids=str,
)
def test_only_the_rows_asked_for_are_unpacked(fields, monkeypatch):
    module = QuantEmbedding(table(16, **fields))
    expected = module.weight[IDS]

    def refuse(*_):
        raise AssertionError("the whole table was unpacked")

    monkeypatch.setattr(QuantizedTensor, "dequantize", refuse)
    assert torch.equal(module(IDS), expected)


@pytest.mark.parametrize("width", [16, 15], ids=["aligned", "odd"])
class TestAsEmbedding:
    """It answers as ``nn.Embedding`` does."""

    def test_shapes_and_integer_types_of_ids(self, width):
        module = QuantEmbedding(table(width, bits=4), padding_idx=2)
        assert (module.num_embeddings, module.embedding_dim, module.padding_idx) == (ROWS, width, 2)
        for ids in (torch.tensor(3), torch.tensor([5]), torch.empty(0, dtype=torch.long), torch.ones(2, 0).long()):
            assert module(ids).shape == (*ids.shape, width)
        assert torch.equal(module(IDS.int()), module(IDS))

    @pytest.mark.parametrize("wrong", [-1, ROWS, -100])
    def test_ids_outside_the_table_are_refused(self, width, wrong):
        with pytest.raises(IndexError):
            QuantEmbedding(table(width, bits=4))(torch.tensor([0, wrong]))

    def test_the_dtype_of_the_rows_follows_to(self, width):
        module = QuantEmbedding(table(width, bits=4), dtype=torch.float16)
        assert module(IDS).dtype == torch.float16
        assert nn.Sequential(module).to(torch.bfloat16)[0](IDS).dtype == torch.bfloat16
        assert module.to("cpu")(IDS).dtype == torch.bfloat16
        assert module.float()(IDS).dtype == torch.float32
        assert torch.equal(module(IDS), module.weight[IDS])


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = QuantEmbedding(table(16, bits=8))
        self.encoder = TiedQuantEmbedding(self.shared)


def test_tied_embedding_reads_the_shared_table():
    model = Pair()
    assert torch.equal(model.encoder(IDS), model.shared(IDS))
    assert torch.equal(model.encoder.weight, model.shared.weight)


def test_tied_embedding_registers_nothing():
    model = Pair()
    assert list(model.encoder.state_dict()) == list(model.encoder.children()) == list(model.encoder.parameters()) == []
    assert set(model.state_dict()) == {"shared.codes", "shared.scale"}


def test_tied_embedding_follows_copies_and_casts_of_the_whole_model():
    model = Pair()
    before = model.encoder.weight
    copy = deepcopy(model)
    copy.shared.scale.mul_(2)
    assert torch.equal(copy.encoder(IDS), 2 * before[IDS])
    assert torch.equal(model.encoder(IDS), before[IDS])
    assert copy.bfloat16().encoder(IDS).dtype == torch.bfloat16
    assert model.encoder(IDS).dtype == torch.float32
