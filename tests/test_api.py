"""The two public functions that take both folders and loaded models."""

import pytest
from transformers import AutoModel

import lowbit
from lowbit.errors import SchemeError


def test_plan_of_a_folder_is_that_of_the_loaded_model(tiny):
    folder = tiny.model("bert")
    assert lowbit.plan(folder, "w3") == lowbit.plan(AutoModel.from_pretrained(folder), "w3")


def test_a_folder_needs_an_output(tiny):
    with pytest.raises(SchemeError, match="give `output`"):
        lowbit.quantize(tiny.model("bert"), "w4")


def test_a_loaded_model_is_quantized_in_place(tiny, tmp_path):
    model = AutoModel.from_pretrained(tiny.model("bert"))
    with pytest.raises(SchemeError, match=r"lowbit\.save"):
        lowbit.quantize(model, "w4", output=tmp_path / "out")
    plan = lowbit.quantize(model, "w4")
    assert {entry.name for entry in plan.quantized} >= {"embeddings.word_embeddings", "encoder.layer.0.output.dense"}
    assert type(model.encoder.layer[0].output.dense).__name__ == "QuantLinear"
