"""Codebook weights go the whole way, as the uniform grids do in ``test_end_to_end``."""

import pytest
import torch

import lowbit
from lowbit.adapter import apply_adapter, read_adapter
from lowbit.checkpoint import measure
from lowbit.nn import QuantModule
from tests.models import file_bytes, output
from tests.test_quantize import in_memory
from tests.tiny import options, toy_data

EMBEDDINGS = {"bits": 4, "strategy": "kmeans", "outliers": None}
RECIPES = {
    "own": {"scheme": {"bits": 3, "strategy": "kmeans", "outliers": {"share": 0.02}}, "embeddings": EMBEDDINGS},
    "shared": {
        "scheme": {"strategy": "kmeans", "levels": "shared-codebook", "outliers": {"share": 0.02}},
        "embeddings": EMBEDDINGS | {"levels": "shared-codebook"},
    },
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("arch", ["bert", "t5", "gpt2"])
def test_the_whole_way(tiny, tmp_path, arch, recipe):
    source, data = tiny.model(arch), toy_data()
    done = lowbit.quantize(source, RECIPES[recipe], output=tmp_path / "backbone")
    backbone = done.path
    in_memory(source, RECIPES[recipe], tmp_path / "memory")
    assert file_bytes(tmp_path / "memory") == file_bytes(backbone)
    found = lowbit.inspect(backbone)
    assert done.plan.effective_bits == pytest.approx(measure(backbone).effective_bits)
    assert found["effective_bits"] == pytest.approx(done.plan.effective_bits)
    assert all("kmeans" in row["scheme"] for row in found["modules"])

    tuned = lowbit.tune(
        backbone, tmp_path / "adapter", data, options=options(scales=True, learning_rate=0.05, head_learning_rate=0.02)
    )
    trained = {name.rpartition(".")[2] for name in read_adapter(tuned.path)[1]}
    assert {"outlier_value", "scale"} <= trained

    model = lowbit.load(backbone, tuned.path)
    before = lowbit.load(backbone)
    moved = [n for n, m in model.named_modules() if isinstance(m, QuantModule) and m.outlier_value is not None]
    assert any(not torch.equal(model.get_submodule(n).scale, _module(before, n, model).scale) for n in moved)
    merged = lowbit.load(lowbit.merge(backbone, tuned.path, tmp_path / "merged"))
    apply_adapter(model, tuned.path)
    assert torch.equal(output(merged), output(model))
    assert lowbit.evaluate(tmp_path / "merged", data) == lowbit.evaluate(backbone, data, adapter=tuned.path)
    assert lowbit.verify(backbone).fingerprint == lowbit.verify(tuned.path).fingerprint
    lowbit.verify(tmp_path / "merged")


def _module(model, name, other):
    """The module of another task class that ``name`` of ``other`` stands for."""
    return model.get_submodule(f"{model.base_model_prefix}{name.removeprefix(other.base_model_prefix)}")
