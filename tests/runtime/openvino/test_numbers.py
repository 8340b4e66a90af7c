"""The numbers that the graph computes with: folded weights, grids of the inputs, and the machine's products."""

import numpy as np
import pytest
import torch

from lowbit.errors import DataError
from lowbit.kernels import saturates
from lowbit.qtensor import quantize_tensor
from lowbit.runtime.openvino import inputs
from lowbit.runtime.openvino.inputs import Folded, Grid, Seen, choose_grid, observe
from lowbit.runtime.openvino.weights import LIMIT, fold_columns, table_codes
from lowbit.scheme import Scheme
from tests.models import tiny_batch, tiny_model


def weight(rows=24, columns=96, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def largest_sum(codes):
    pairs = codes.int().view(codes.shape[0], -1, 2)
    return max(pairs.clamp(min=0).sum(-1).max(), -pairs.clamp(max=0).sum(-1).min())


@pytest.mark.parametrize("spare", [True, False])
@pytest.mark.parametrize("scheme", ["w2o0", "w3o0", "w4o0", "w5o0", "w4to0"])
def test_codes_are_kept_exactly(scheme, spare):
    tensor = quantize_tensor(weight(), Scheme.parse(scheme))
    columns = torch.ones(96)
    columns[5] = 2
    codes, scale = fold_columns(tensor, columns, spare=spare)
    assert codes.abs().max() <= LIMIT
    assert not spare or largest_sum(codes) <= 128
    assert torch.allclose(codes * scale, tensor.dequantize() * columns, rtol=1e-5, atol=1e-7)


def test_only_outliers_are_rounded():
    tensor = quantize_tensor(weight(), Scheme.parse("w4o1"))
    codes, scale = fold_columns(tensor, torch.ones(96), spare=False)
    wrong = (codes * scale - tensor.dequantize()).abs() > 1e-5
    outliers = torch.zeros(24 * 96, dtype=torch.bool)
    outliers[tensor.outlier_positions()] = True
    assert wrong.any()
    assert not (wrong.view(-1) & ~outliers).any()


@pytest.mark.parametrize("scheme", ["w4g32", "w8", Scheme(bits=4, strategy="kmeans")])
def test_other_rows_are_rounded_to_the_nearest(scheme):
    tensor = quantize_tensor(weight(), Scheme.parse(scheme))
    codes, scale = fold_columns(tensor, torch.ones(96), spare=True)
    assert ((codes * scale - tensor.dequantize()).abs() <= scale * 0.5001).all()
    assert 64 < largest_sum(codes) <= 128


def test_a_row_of_zeros():
    values = weight()
    values[3] = 0
    tensor = quantize_tensor(values, Scheme.parse("w4o0"))
    codes, scale = fold_columns(tensor, torch.ones(96), spare=True)
    assert not codes[3].any()
    assert scale.isfinite().all()


def test_tables():
    tensor = quantize_tensor(weight(), Scheme.parse("w8o0"))
    codes, scale = table_codes(tensor)
    assert torch.equal(codes * scale, tensor.dequantize())
    assert table_codes(quantize_tensor(weight(), Scheme.parse("w8o1"))) is None
    assert table_codes(quantize_tensor(weight(), Scheme.parse("w4g32o0"))) is None


def test_a_grid_holds_zero_and_its_ends():
    low, high = torch.tensor([-0.17, 0.0, -0.1]), torch.tensor([1.0, 8.0, 2.0])
    grid = Grid.of(low, high, torch.tensor([1.0, 4.0, 1.0]))
    values = torch.stack([low, torch.zeros(3), high])
    step = (grid.high - grid.low) / 255
    assert torch.equal(grid.round(torch.zeros(3)), torch.zeros(3))
    assert ((grid.round(values) - values / grid.divisors).abs() <= step * 1.01).all()


def test_ranges_are_the_largest_of_all_calls_and_leave_padding_out():
    model = tiny_model("albert", "AlbertModel")  # one layer, called twice
    path = next(path for path, _ in model.named_modules() if path.endswith("attention.query"))
    calls = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda _, args: calls.append(args[0]))
    batch = tiny_batch(model.config)
    found = observe(model, [path], [batch])[path]
    hook.remove()
    kept = torch.cat([call[batch["attention_mask"].bool()] for call in calls])
    assert len(calls) == 2
    assert torch.equal(found.low, kept.amin(0).clamp(max=0))
    assert torch.equal(found.high, kept.amax(0).clamp(min=0))
    assert len(found.sample()) <= 256
    with pytest.raises(DataError, match=r"pooler.*no calibration input"):
        observe(model, ["pooler"], [])


def test_one_large_channel_is_divided(monkeypatch):
    rows = weight(64, 96, seed=1)
    rows[:, 7] *= 30
    tensor = quantize_tensor(weight(), Scheme.parse("w4"))
    seen = Seen()
    seen.add(rows[None], torch.ones(1, 64, dtype=torch.bool))

    def error():
        grid, folded = choose_grid({"a": tensor}, {"a": seen}, spare=True)
        found = grid.round(rows) @ (folded["a"].codes * folded["a"].scale).t() + folded["a"].shift
        difference = found - rows @ tensor.dequantize().t()
        return grid, float(difference.norm())

    grid, chosen = error()
    monkeypatch.setattr(inputs, "_RATIOS", (1,))
    _, undivided = error()
    assert grid.divisors[7] > 1
    assert int((grid.divisors > 1).sum()) == 1
    assert chosen < 0.7 * undivided


def test_the_machines_products_do_not_overflow():
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'lowbit[openvino]'")
    from openvino import opset13

    from lowbit.runtime.openvino.graph import put_linears
    from lowbit.runtime.openvino.model import compile_graph

    codes = torch.full((16, 64), LIMIT, dtype=torch.int8)
    if saturates():
        codes[:, 1::2] = 1
        codes[4:8] = torch.tensor([1, LIMIT, LIMIT, 1], dtype=torch.int8).repeat(16)
        codes[8:12] = 64
    codes[1::2] *= -1
    source = opset13.parameter([-1, -1, 64], dtype=np.float32)
    product = opset13.matmul(source, opset13.constant(codes.float().numpy()), False, True)
    product.set_friendly_name("__module.model.a/aten::linear/MatMul")
    graph = openvino.Model([opset13.result(product)], [source])
    put_linears(
        {"a": [product]}, Grid(0.0, 255.0, torch.ones(64)), {"a": Folded(codes, torch.ones(16, 1), torch.zeros(16))}
    )
    graph.validate_nodes_and_infer_types()
    rows = torch.full((1, 5, 64), 255.0)  # the largest input meets the largest codes
    found = torch.from_numpy(compile_graph(graph, 1)(rows.numpy())[0])
    assert torch.equal(found, rows @ codes.float().t())
