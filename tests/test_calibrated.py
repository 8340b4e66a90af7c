"""Quantizing with Hessians: the strategy gptq from a checkpoint or a loaded model to a backbone."""

import pytest
import torch
import transformers

import lowbit
from lowbit.arch import pack_model
from lowbit.calibration import Inputs, blocks, generated_inputs
from lowbit.checkpoint import load_tokenizer
from lowbit.errors import CheckpointError, DataError, SchemeError, WeightError
from lowbit.nn import QuantLinear, QuantModule
from lowbit.quantize import fake_quantize_model, quantize_checkpoint, quantize_model
from lowbit.recipe import Recipe
from tests.models import file_bytes, load, same, save_tiny, stored
from tests.tiny import BACKBONES, random_states

GPTQ = {"bits": 2, "strategy": "gptq", "outliers": {"share": 0.02}}
RECIPE = Recipe.parse({"scheme": GPTQ})
STATIC = Recipe.parse("w4a8s")


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("recipe", [RECIPE, STATIC], ids=["gptq", "static"])
@pytest.mark.parametrize("arch", BACKBONES)
def test_streaming_and_in_memory_agree(tiny, tmp_path, arch, recipe):
    source, states = tiny.model(arch), random_states()
    quantize_checkpoint(source, recipe, tmp_path / "a", seed=1)
    model = getattr(transformers, BACKBONES[arch]).from_pretrained(source)
    lowbit.quantize(model, recipe, seed=1)
    lowbit.save(model, tmp_path / "b")
    assert file_bytes(tmp_path / "a") == file_bytes(tmp_path / "b")
    assert random_states() == states
    quantize_checkpoint(source, recipe, tmp_path / "other", seed=2)  # other generated inputs
    assert weights(tmp_path / "other") != weights(tmp_path / "a")


def test_on_loading_too(tiny, tmp_path):
    quantize_checkpoint(tiny.model("bert"), RECIPE, tmp_path / "a")
    options = {"quantization_config": lowbit.LowbitConfig(RECIPE.to_dict())}
    load("BertModel", tiny.model("bert"), **options).save_pretrained(tmp_path / "b")
    assert lowbit.verify(tmp_path / "a").fingerprint == lowbit.verify(tmp_path / "b").fingerprint


@pytest.mark.parametrize("quantize", [quantize_model, fake_quantize_model])
def test_generated_inputs_may_be_pairs(tiny, quantize):
    """As if the same pairs had been given."""
    source = tiny.model("bert", "BertForSequenceClassification")
    given = generated_inputs(load("BertModel", source), load_tokenizer(source), pairs=1.0, seed=1)
    errors = []
    for options in ({"pairs": 1.0}, {"pairs": 0.0}):
        model = load("BertForSequenceClassification", source)
        errors.append(quantize(model, RECIPE, seed=1, **options).errors)
    model = load("BertForSequenceClassification", source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Inputs, "batches", lambda *_: given)
        assert quantize(model, RECIPE, seed=1).errors == errors[0]
    assert errors[0] != errors[1]


def test_fake_quantizers_start_from_it(tiny):
    models = [load("GPT2LMHeadModel", tiny.model("gpt2")) for _ in range(2)]
    plans = [
        quantize(model, RECIPE) for quantize, model in zip((quantize_model, fake_quantize_model), models, strict=True)
    ]
    assert plans[0] == plans[1]
    assert plans[0].errors == plans[1].errors
    pack_model(models[1])
    modules = [{n: m for n, m in model.named_modules() if isinstance(m, QuantModule)} for model in models]
    assert list(modules[0]) == list(modules[1])
    assert all(torch.equal(module.weight, modules[1][name].weight) for name, module in modules[0].items())


def test_outputs_are_closer_than_with_the_nearest_codes(tiny):
    source, texts = tiny.model("bert"), ["good film", "the very fine book was awful", "it was a great song", "bad"] * 8
    reference = load("BertModel", source).eval()
    batch = {"input_ids": torch.arange(4, 18).view(2, 7), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    batch["input_ids"][:, 0] = 2

    def change(scheme, **options):
        model = load("BertModel", source).eval()
        quantize_model(model, Recipe.parse({"scheme": scheme, "embeddings": "float"}), **options)
        with torch.no_grad():
            return float((model(**batch)[0] - reference(**batch)[0]).square().sum())

    nearest = change(GPTQ | {"strategy": "mse"})
    assert change(GPTQ, texts=texts) < 0.8 * nearest


def test_only_the_modules_that_ask_for_it_are_calibrated_and_the_errors_are_recorded(tiny, tmp_path):
    recipe = {"scheme": "w3", "overrides": [{"match": "*.output.dense", "scheme": GPTQ}]}
    mixed = lowbit.quantize(tiny.model("bert"), recipe, output=tmp_path / "mixed").plan
    plain = lowbit.quantize(tiny.model("bert"), {"scheme": "w3"}, output=tmp_path / "plain").plan
    differ = sorted(name for name in mixed.errors if mixed.errors[name] != plain.errors[name])
    expected = [f"encoder.layer.{i}.{name}" for i in (0, 1) for name in ("attention.output.dense", "output.dense")]
    assert differ == expected


def test_static_steps_are_found_beside_hessians_and_change_no_weight(tiny, tmp_path):
    both = {"scheme": GPTQ | {"activations": "static"}}
    done = lowbit.quantize(tiny.model("bert"), both, output=tmp_path / "both")
    lowbit.quantize(tiny.model("bert"), RECIPE, output=tmp_path / "gptq")
    ours, theirs = (stored(tmp_path / name)[0] for name in ("both", "gptq"))
    steps = {name: ours.pop(name) for name in list(ours) if name.endswith(".input_scale")}
    assert len(steps) == 2 * 6
    assert same(ours, theirs)
    assert done.plan.bytes_after == sum(tensor.nbytes for tensor in (*ours.values(), *steps.values()))
    assert done.plan.effective_bits == pytest.approx(done.size.effective_bits)


def test_static_steps_come_from_the_text_that_is_given(tiny, tmp_path):
    found = []
    for name, texts in (("a", ["good film"] * 9), ("b", ["the very fine book was awful"] * 9)):
        lowbit.quantize(tiny.model("bert"), STATIC, output=tmp_path / name, texts=texts)
        found.append(stored(tmp_path / name)[0])
    differ = {name.rpartition(".")[2] for name in found[0] if not torch.equal(found[0][name], found[1][name])}
    assert differ == {"input_scale"}


def test_static_steps_are_kept_in_float32(tiny, tmp_path):
    folder = tiny.backbone("bert", recipe="w4a8s", dtype=torch.bfloat16)
    for dtype in ("auto", torch.float16):
        model = load("BertModel", folder, dtype=dtype)
        steps = [m.input_scale for m in model.modules() if isinstance(m, QuantLinear)]
        assert {step.dtype for step in steps} == {torch.float32}
    model.save_pretrained(tmp_path / "copy")
    assert lowbit.verify(tmp_path / "copy").fingerprint == lowbit.verify(folder).fingerprint


def test_later_blocks_see_quantized_earlier_ones(tiny):
    def codes(recipe, name):
        model = load("BertModel", tiny.model("bert"))
        lowbit.quantize(model, recipe)
        return model.get_submodule(name).codes

    last = {"overrides": [{"match": "encoder.layer.1.*", "scheme": GPTQ}], "embeddings": "float"}
    name = "encoder.layer.1.intermediate.dense"
    alone = codes({**last, "skip": ["encoder.layer.0.*"]}, name)
    after = codes({**last, "scheme": GPTQ}, name)
    assert not torch.equal(alone, after)


def test_a_failure_leaves_the_model_as_it_was(tiny):
    model = load("BertModel", tiny.model("bert"))
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[0, 0] = torch.nan
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightError, match=r"^encoder.layer.1.output.dense: 1 of 1536 weights are NaN"):
        quantize_model(model, RECIPE)
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if "1.output" not in name
    )


def test_bad_inputs_are_named(tiny, tmp_path):
    source = tiny.model("bert")
    with pytest.raises(DataError, match="calibration text is empty"):
        lowbit.quantize(source, RECIPE, output=tmp_path / "a", texts=[])
    with pytest.raises(SchemeError, match="no strategy of the recipe reads calibration text; choose `gptq`"):
        lowbit.quantize(source, "w4", output=tmp_path / "a", texts=["good film"])
    model = load("BertModel", source)
    with torch.no_grad():
        model.embeddings.LayerNorm.bias[0] = torch.inf
    with pytest.raises(WeightError, match=r"^encoder.layer.0.attention.self.query: its inputs are NaN or infinite"):
        quantize_model(model, RECIPE)
    bare = save_tiny(tmp_path / "bare", "bert", "BertModel")  # without a tokenizer
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        lowbit.quantize(bare, RECIPE, output=tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_blocks():
    paths = ["encoder.layer.0.a", "encoder.layer.0.b.c", "encoder.layer.10.a", "x", "h.1.mlp.c"]
    assert blocks(paths) == [["encoder.layer.0.a", "encoder.layer.0.b.c"], ["encoder.layer.10.a"], ["x"], ["h.1.mlp.c"]]
