import dataclasses
import json
import math

import pytest
import torch
from safetensors import safe_open

from lowbit.checkpoint import read_manifest, weight_files
from lowbit.errors import CheckpointError, SchemeError, UnsupportedModelError
from lowbit.plan import Plan, make_plan, module_specs, quantization_config
from lowbit.quantize import plan_checkpoint, quantize_checkpoint
from lowbit.recipe import Recipe
from lowbit.scheme import OutlierRule, Scheme
from tests.models import CLASSIFIERS, LANGUAGE_MODELS, edit_json, save_tiny, tiny_model

MODELS = [*LANGUAGE_MODELS, *CLASSIFIERS, ("bert", "BertModel"), ("t5", "T5EncoderModel")]


def stored_bytes(folder):
    """Bytes of the tensors in a float checkpoint."""
    total = 0
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            total += file.get_tensor(name).nbytes
    return total


@pytest.mark.parametrize(
    ("arch", "class_name", "recipe"),
    [(*model, "w4") for model in MODELS]
    + [
        ("roberta", "RobertaForMaskedLM", "w3g16"),
        ("t5", "T5ForConditionalGeneration", {"scheme": "w2t", "embeddings": 4}),
        ("t5-v1.1", "T5ForConditionalGeneration", {"scheme": "w5o0", "embeddings": "float"}),
        ("opt-projected", "OPTForCausalLM", {"scheme": {"symmetric": False}, "skip": ["*.fc1"]}),
        ("gpt2", "GPT2LMHeadModel", {"scheme": "w7g16o2", "embeddings": {"bits": 6}}),
    ],
)
def test_announced_bytes_are_the_bytes_written(tmp_path, arch, class_name, recipe):
    folder = save_tiny(tmp_path / "m", arch, class_name)
    recipe = Recipe.parse(recipe)
    plan = plan_checkpoint(folder, recipe)
    assert plan.bytes_before == stored_bytes(folder)
    done = quantize_checkpoint(folder, recipe, tmp_path / "q")
    assert plan == done.plan
    assert plan.bytes_after == sum(entry.nbytes for entry in read_manifest(*weight_files(tmp_path / "q")).values())
    assert (
        sum(entry.weights for entry in plan.entries)
        == done.size.parameters
        == tiny_model(arch, class_name).num_parameters()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bytes_of_a_half_precision_checkpoint(tmp_path, dtype):
    folder = save_tiny(tmp_path / "m", "bert", "BertForMaskedLM", dtype=dtype)
    plan = plan_checkpoint(folder, Recipe.parse("w4"))
    assert plan.bytes_before == stored_bytes(folder)
    quantize_checkpoint(folder, Recipe.parse("w4"), tmp_path / "q")
    assert plan.bytes_after == sum(entry.nbytes for entry in read_manifest(tmp_path / "q/model.safetensors").values())


def test_effective_bits_by_hand():
    plan = make_plan(tiny_model("bert", "BertModel", num_hidden_layers=1), Recipe.parse("w4"))
    weights = bits = 0
    for rows, columns in [(32, 32)] * 4 + [(48, 32), (32, 48)]:
        size, outliers = rows * columns, round(0.005 * rows * columns)
        weights += size
        bits += 4 * size + 32 * rows + 32 * (rows + 1) + 32 * outliers  # codes, steps, row starts, column and value
    assert plan.effective_bits == pytest.approx(bits / weights)
    assert plan.model_bits == pytest.approx(8 * plan.bytes_after / sum(entry.weights for entry in plan.entries))


def test_a_plan_of_a_meta_model_equals_that_of_the_real_one():
    model = tiny_model("t5", "T5ForConditionalGeneration")
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    assert make_plan(skeleton, Recipe.parse("w4")) == make_plan(model, Recipe.parse("w4"))


def schemes(plan):
    return {entry.name: None if entry.scheme is None else str(entry.scheme) for entry in plan.entries}


def test_first_matching_override_wins():
    recipe = Recipe.parse(
        {
            "scheme": "w4",
            "overrides": [
                {"match": "encoder.layer.1.*.query", "scheme": "w8o0"},
                {"match": "encoder.layer.1.*", "scheme": "w2"},
                {"match": "encoder.layer.*.dense", "scheme": "w3"},
            ],
        }
    )
    found = schemes(make_plan(tiny_model("bert", "BertForSequenceClassification"), recipe))
    assert found["encoder.layer.0.attention.self.query"] == "w4"
    assert found["encoder.layer.0.output.dense"] == "w3"
    assert found["encoder.layer.1.attention.self.query"] == "w8o0"
    assert found["encoder.layer.1.output.dense"] == "w2"
    assert found["classifier"] is None
    assert found["pooler.dense"] is None


def test_skips_are_named_as_the_recipes_choice():
    recipe = Recipe.parse({"scheme": "w4", "skip": ["h.1.*", "wte"]})
    plan = make_plan(tiny_model("gpt2", "GPT2LMHeadModel"), recipe)
    by_name = {entry.name: entry for entry in plan.entries}
    assert (by_name["h.1.mlp.c_fc"].kind, by_name["h.1.mlp.c_fc"].reason) == ("skipped", "recipe")
    assert (by_name["wte"].kind, by_name["wte"].reason) == ("skipped", "recipe")
    assert by_name["h.0.mlp.c_fc"].shape == (48 * 0 + 128, 32)
    assert by_name["h.0.mlp.c_fc"].scheme == Scheme(bits=4)


@pytest.mark.parametrize(("embeddings", "bits"), [(8, 8), (4, 4), ("8", 8), ("float", None)])
def test_embeddings(embeddings, bits):
    recipe = Recipe.parse({"scheme": "w2", "embeddings": embeddings})
    plan = make_plan(tiny_model("opt", "OPTForCausalLM"), recipe)
    entry = next(entry for entry in plan.entries if entry.name == "decoder.embed_tokens")
    assert (entry.scheme.bits if entry.scheme else None) == bits
    assert entry.kind == ("embedding" if bits else "skipped")
    if bits:
        assert entry.bytes_after == 64 * 32 * bits // 8 + 64 * 4
        assert entry.scheme.outliers is None


def test_an_override_reaches_embeddings_too():
    recipe = Recipe.parse({"embeddings": "float", "overrides": [{"match": "wte", "scheme": "w6"}]})
    assert schemes(make_plan(tiny_model("gpt2", "GPT2Model"), recipe))["wte"] == "w6"


@pytest.mark.parametrize(
    "recipe",
    [
        {"skip": ["encoder.layer.7.*"]},
        {"overrides": [{"match": "encoder.layer.7.*", "scheme": "w8"}]},
        {"skip": ["classifier"]},  # never quantized, so nothing that a recipe could skip
        {"skip": ["bert.encoder.layer.0.*"]},  # names are relative to the base model
    ],
)
def test_a_pattern_that_matches_nothing(recipe):
    pattern = (recipe.get("skip") or [recipe["overrides"][0]["match"]])[0]
    with pytest.raises(SchemeError) as caught:
        make_plan(tiny_model("bert", "BertForSequenceClassification"), Recipe.parse(recipe))
    assert repr(pattern) in str(caught.value)
    assert "'embeddings.word_embeddings'" in str(caught.value)


def test_a_group_that_does_not_divide_names_the_module():
    with pytest.raises(SchemeError, match=r"^encoder\.layer\.0\.output\.dense: group size 32 does not divide.*48"):
        make_plan(tiny_model("bert", "BertModel"), Recipe.parse("w4g32"))


def test_a_recipe_that_quantizes_nothing():
    with pytest.raises(SchemeError, match="quantizes nothing"):
        make_plan(tiny_model("gpt2", "GPT2Model"), Recipe.parse({"skip": ["*"]}))


def test_unknown_model_type(tmp_path):
    folder = save_tiny(tmp_path / "m", "bert", "BertModel")
    edit_json(folder / "config.json", lambda config: config.update(model_type="nope"))
    with pytest.raises(UnsupportedModelError, match=r"config\.json: transformers .* has no model type 'nope'"):
        plan_checkpoint(folder, Recipe.parse("w4"))


def test_plan_json_tells_every_module():
    plan = make_plan(tiny_model("bert", "BertForMaskedLM"), Recipe.parse("w4"))
    values = json.loads(json.dumps(plan.to_dict()))
    assert [module["name"] for module in values["modules"]] == [entry.name for entry in plan.entries]
    assert all(module["scheme"] or module["reason"] for module in values["modules"])
    assert values["bytes_after"] == plan.bytes_after
    assert Recipe.parse(values["recipe"]) == plan.recipe


def test_a_sigma_threshold_is_announced_at_half_a_percent():
    scheme = Scheme(outliers=OutlierRule(rule="tail", share=None, sigma=3.0))
    guess = make_plan(tiny_model("bert", "BertModel"), Recipe(scheme=scheme))
    budget = make_plan(tiny_model("bert", "BertModel"), Recipe())
    assert guess.bytes_after == budget.bytes_after


def test_config_and_specs_are_inverses():
    recipe = Recipe.parse({"scheme": "w3g16", "overrides": [{"match": "*.wo", "scheme": "w8t"}], "embeddings": 4})
    plan = make_plan(tiny_model("t5", "T5ForConditionalGeneration"), recipe)
    specs = module_specs(json.loads(json.dumps(quantization_config(plan))))
    assert {name: (s.kind, s.shape, s.scheme) for name, s in specs.items()} == {
        entry.name: (entry.kind, entry.shape, entry.scheme) for entry in plan.quantized
    }


@pytest.mark.parametrize(
    "damage",
    [
        lambda config: config.pop("version"),
        lambda config: config.update(version=99),
        lambda config: config.pop("groups"),
        lambda config: config.update(groups=7),
        lambda config: config["groups"][0].pop("scheme"),
        lambda config: config["groups"][0].update(shape=[1]),
        lambda config: config["groups"][0].update(shape=None),
        lambda config: config["groups"][0]["scheme"].update(bits=9),
        lambda config: config["groups"][0]["scheme"].update(unknown=1),
    ],
)
def test_damaged_config(damage):
    config = quantization_config(make_plan(tiny_model("bert", "BertModel"), Recipe.parse("w4")))
    damage(config)
    with pytest.raises(CheckpointError, match=r"version|damaged"):
        module_specs(config)


def test_plans_are_values():
    plan = make_plan(tiny_model("bert", "BertModel"), Recipe.parse("w4"))
    assert isinstance(plan, Plan)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.model_type = "x"
    assert all(math.prod(entry.shape) <= entry.weights for entry in plan.quantized)
