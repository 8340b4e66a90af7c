"""Every method of ``lowbit.zeroshot`` makes an ordinary model."""

import pytest
import torch

import lowbit
from lowbit.zeroshot import METHODS
from tests.models import stored
from tests.zeroshot.runs import TEXTS, gap_of, zeroshot

CLASSIFIER = ("bert", "BertForSequenceClassification")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_an_ordinary_model(tiny, tmp_path, method):
    model = tiny.model(*CLASSIFIER)
    texts = TEXTS if method == "real" else None
    generator = tiny.model("opt") if method == "sampled" else None
    result = zeroshot(model, tmp_path / "out", method=method, texts=texts, generator=generator)
    assert (result.method, result.scheme, result.path) == (method, "w2a8o0", tmp_path / "out")
    assert (result.gap < result.start_gap) == (method != "rtn")
    assert gap_of(model, result.path) == pytest.approx(result.gap, rel=1e-4)
    assert len(result.record) == (0 if method == "rtn" else 4)
    assert any(row["sharpness"] for row in result.record) == METHODS[method].sharp
    assert all(("generator_loss" in row) == METHODS[method].ascends for row in result.record)
    assert [row["step"] for row in result.record if "gap" in row] == ([] if method == "rtn" else [2, 4])


def test_nothing_trained_is_what_quantize_writes(tiny, tmp_path):
    model = tiny.model(*CLASSIFIER)
    recipe = {"scheme": {"bits": 3, "strategy": "gptq", "outliers": None}}
    zeroshot(model, tmp_path / "out", recipe=recipe, method="rtn")
    lowbit.quantize(model, recipe, output=tmp_path / "quantized")
    ours, theirs = stored(tmp_path / "out")[0], stored(tmp_path / "quantized")[0]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
