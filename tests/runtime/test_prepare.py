import copy
import importlib.util

import pytest
import torch
from torch import nn
from transformers import pipeline

import lowbit
from lowbit.checkpoint import load_tokenizer
from lowbit.errors import MissingExtraError, SchemeError, UnsupportedModelError
from lowbit.kernels import best_kernel
from lowbit.nn import Int8Linear, QuantEmbedding, QuantLinear, TiedQuantLinear
from lowbit.runtime import prepare
from tests.models import output, tiny_model
from tests.tiny import BACKBONES, OTHER_BACKBONES, options, random_states, texts_of, toy_data

TEXTS = texts_of(toy_data())


def paths(model, kinds):
    return [path for path, module in model.named_modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("arch", BACKBONES | OTHER_BACKBONES)
def test_every_architecture(tiny, arch):
    """Each quantized linear, and no other module, becomes an int8 one; the output is close to the unprepared one."""
    model = lowbit.load(tiny.backbone(arch))
    kind, expected = type(model), output(model)
    linears, others = (
        paths(model, QuantLinear | TiedQuantLinear),
        paths(model, nn.Linear | nn.LayerNorm | QuantEmbedding),
    )
    assert prepare(model, backend="torch") is model
    assert type(model) is kind
    assert paths(model, Int8Linear) == linears
    assert paths(model, nn.Linear | nn.LayerNorm | QuantEmbedding) == others
    assert not paths(model, QuantLinear | TiedQuantLinear)
    found = output(model)
    assert found.dtype == expected.dtype
    limit = 0.1 if arch == "gpt_neo" else 0.06  # its attention is not scaled, which makes more of 8 bits' rounding
    assert 0 < (found - expected).norm() < limit * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half(tiny, dtype):
    model = lowbit.load(tiny.backbone("bert", dtype=dtype))
    expected = output(model)
    found = output(prepare(model, backend="torch"))
    assert found.dtype == dtype
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_rows_do_not_depend_on_their_batch(tiny):
    model = prepare(lowbit.load(tiny.backbone("bert")), backend="torch")
    ids = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    together = model(input_ids=ids)[0]
    torch.testing.assert_close(model(input_ids=ids[1:2])[0], together[1:2], rtol=1e-3, atol=1e-3)
    assert model(input_ids=ids[:, :1])[0].isfinite().all()


def test_a_pipeline_with_an_adapter(tiny):
    folders = tiny.backbone("bert"), tiny.adapter("bert")
    expected = list(lowbit.predict(folders[0], TEXTS, adapter=folders[1]))
    model = prepare(lowbit.load(*folders), backend="torch")
    classify = pipeline("text-classification", model=model, tokenizer=load_tokenizer(folders[0]), device="cpu")
    for answer, row in zip(classify(TEXTS, top_k=None), expected, strict=True):
        assert {found["label"]: found["score"] for found in answer} == pytest.approx(row["probabilities"], abs=0.01)


def test_generation_with_a_cache(tiny):
    for arch in ("opt", "gpt2", "t5"):
        model = prepare(lowbit.load(tiny.backbone(arch)), backend="torch")
        ids = torch.tensor([[5, 6, 7]])
        settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 1}
        with_cache = model.generate(ids, use_cache=True, **settings)
        assert torch.equal(with_cache, model.generate(ids, use_cache=False, **settings))


def test_the_report_names_kernels_reasons_and_what_is_absent(tiny, monkeypatch):
    report = prepare(lowbit.load(tiny.backbone("roberta")), backend="torch").lowbit_runtime
    kernel, why = best_kernel()
    assert (report.backend, report.mode) == ("torch", "latency")
    assert [(choice.kind, choice.modules) for choice in report.choices] == [
        ("linear", 12),
        ("tied output projection", 1),
        ("activation", 2),
        ("encoder layer", 2),
        ("word embedding", 1),
        ("float linear", 1),
    ]
    assert report.choices[0].kernel == f"int8, {kernel}"
    assert report.choices[0].why == why
    assert 0 < report.added_error < 0.05
    monkeypatch.setattr("lowbit.runtime.latency.kernels_absence", lambda: "no C compiler; install gcc")
    monkeypatch.setattr("lowbit.runtime.latency.best_kernel", lambda: ("reference", "nothing else"))
    report = prepare(lowbit.load(tiny.backbone("roberta")), backend="torch").lowbit_runtime
    assert report.absent == ("no C compiler; install gcc",)
    assert "  absent: no C compiler; install gcc" in str(report).splitlines()
    assert "  12 x linear: int8, reference (nothing else)" in str(report).splitlines()


def test_nothing_is_random_and_states_are_left_alone(tiny):
    before = random_states()
    one, two = (output(prepare(lowbit.load(tiny.backbone("opt")), backend="torch")) for _ in range(2))
    assert torch.equal(one, two)
    assert random_states() == before


def test_what_cannot_be_prepared(tiny, tmp_path, monkeypatch):
    with pytest.raises(UnsupportedModelError, match="no quantized modules; make a backbone with"):
        prepare(tiny_model("bert", "BertModel"))
    model = lowbit.load(tiny.backbone("bert"))
    for wrong in ({"mode": "fast"}, {"backend": "onnx"}, {"mode": "memory", "backend": "openvino"}):
        with pytest.raises(SchemeError):
            prepare(model, **wrong)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install openvino"):
        prepare(model, backend="openvino")
    prepare(model)
    assert model.lowbit_runtime.backend == "torch"
    with pytest.raises(UnsupportedModelError, match="prepared already; load it again"):
        prepare(model)
    with pytest.raises(UnsupportedModelError, match="no backbone to be saved"):
        model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="prepared model cannot be copied"):
        copy.deepcopy(model)


def test_low_rank_factors_are_refused(tiny, tmp_path):
    pytest.importorskip("peft")
    backbone = tiny.backbone("bert")
    adapter = lowbit.tune(backbone, tmp_path / "lora", toy_data(), options=options(), method="lora").path
    with pytest.raises(UnsupportedModelError, match="factors cannot be folded"):
        prepare(lowbit.load(backbone, adapter), backend="torch")


def test_static_activations_are_refused_before_anything_is_changed(tiny):
    model = lowbit.load(tiny.backbone("bert", recipe="w4a8s"))
    expected = output(model)
    with pytest.raises(UnsupportedModelError, match=r'encoder\.layer\.0\..*stored step \(a8s\).*mode="memory"'):
        prepare(model, backend="torch")
    assert torch.equal(output(model), expected)
    found = output(prepare(model, mode="memory"))
    assert (found - expected).norm() < 0.06 * expected.norm()
