"""Every method of ``lowbit.zeroshot`` makes an ordinary model."""

import dataclasses

import pytest
import torch

import lowbit
from lowbit import ZeroShotOptions
from lowbit.errors import CheckpointError, SchemeError
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
    assert gap_of(model, result.path, generator=generator) == pytest.approx(result.gap, rel=1e-4)
    assert len(result.record) == (0 if method == "rtn" else 4)
    assert any(row["sharpness"] for row in result.record) == METHODS[method].sharp
    assert all(("generator_loss" in row) == METHODS[method].ascends for row in result.record)
    assert all(0 < row["entropy"] < 4 and row["generator_loss"] < 2 for row in result.record if "entropy" in row)
    assert [row["step"] for row in result.record if "gap" in row] == ([] if method == "rtn" else [2, 4])


def test_nothing_trained_is_what_quantize_writes(tiny, tmp_path):
    model = tiny.model(*CLASSIFIER)
    recipe = {"scheme": {"bits": 3, "strategy": "gptq", "outliers": None}}
    zeroshot(model, tmp_path / "out", recipe=recipe, method="rtn")
    lowbit.quantize(model, recipe, output=tmp_path / "quantized")
    ours, theirs = stored(tmp_path / "out")[0], stored(tmp_path / "quantized")[0]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


SAM = ["rho", "relative", "adaptive", "per_tensor", "perturb"]
ASCENT = ["generator_rate", "ratio", "diversity"]
TRAINING = ["steps", "batch_size", "lengths", "learning_rate", "warmup", "schedule", "evaluate_steps", "patience"]
TRAINING += ["save_steps", "precision", "checkpointing"]
REFUSED = {
    "zsaq": [],
    "no-sga": ASCENT,
    "no-sam": SAM,
    "random": ["generator", "candidates", *SAM, *ASCENT],
    "gaussian": ["generator", "candidates", *SAM, *ASCENT],
    "sampled": ["candidates", *SAM, *ASCENT],
    "real": ["pairs", "generator", "candidates", *SAM, *ASCENT],
    "zeroquant": ["generator", "candidates", *SAM, *ASCENT],
    "rtn": [*TRAINING, "generator", "candidates", *SAM, *ASCENT],
}
OTHER = {  # values that are not the default ones
    **dict.fromkeys(("steps", "batch_size", "candidates", "evaluate_steps", "patience", "save_steps", "seed"), 1),
    **dict.fromkeys(("pairs", "learning_rate", "warmup", "temperature", "hidden", "rho", "generator_rate"), 0.5),
    **dict.fromkeys(("relative", "adaptive", "per_tensor", "checkpointing"), True),
    **{"lengths": (1, 2), "generator": "there", "perturb": "latent", "schedule": "constant", "precision": "fp32"},
    **{"ratio": 2, "diversity": 0.5},
}


@pytest.mark.parametrize("method", METHODS)
def test_exactly_what_a_method_has_no_use_for_is_refused(tmp_path, method):
    assert OTHER.keys() == {field.name for field in dataclasses.fields(ZeroShotOptions)}
    refused = []
    for name, value in OTHER.items():
        texts, options = TEXTS if method == "real" else None, ZeroShotOptions(**{name: value})
        with pytest.raises((SchemeError, CheckpointError)) as caught:
            lowbit.zeroshot("./nowhere", tmp_path / "out", method=method, texts=texts, options=options)
        if caught.type is SchemeError:
            flag = name.replace("_", "-")
            assert str(caught.value) == f"the method {method!r} has no use for --{flag}; leave it out"
            refused.append(name)
        else:
            assert "nowhere is not a model folder" in str(caught.value)
    assert sorted(refused) == sorted(REFUSED[method])
    assert list(tmp_path.iterdir()) == []
