import pytest
import torch
from torch import nn

import lowbit
from lowbit.nn import Int8Linear
from lowbit.runtime import prepare
from tests.models import output

FUSED = {
    "bert": ["encoder.layer.0.intermediate.dense", "encoder.layer.1.intermediate.dense"],
    "roberta": [f"roberta.encoder.layer.{layer}.intermediate.dense" for layer in (0, 1)],
    "distilbert": [f"distilbert.transformer.layer.{layer}.ffn.lin1" for layer in (0, 1)],
    "opt": [f"model.decoder.layers.{layer}.fc1" for layer in (0, 1)],
    "albert": [],  # approximates GELU by a hyperbolic tangent
    "gpt2": [],
    "llama": [],
}


@pytest.mark.parametrize("arch", FUSED)
def test_activations_are_computed_with_the_linear_before_them(tiny, arch, monkeypatch):
    model = prepare(lowbit.load(tiny.backbone(arch)), backend="torch")
    fused = [path for path, m in model.named_modules() if isinstance(m, Int8Linear) and m.activation != "none"]
    gone = [path for path, m in model.named_modules() if isinstance(m, nn.Identity)]
    assert fused == FUSED[arch]
    assert len([path for path in gone if "act" in path]) == len(fused)
    monkeypatch.setattr("lowbit.runtime.latency.fuse_activations", lambda model: 0)
    apart = output(prepare(lowbit.load(tiny.backbone(arch)), backend="torch"))
    torch.testing.assert_close(output(model), apart, rtol=0.01, atol=0.05)
