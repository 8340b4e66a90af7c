import pytest
import torch

from lowbit.budget import output_changes
from lowbit.errors import WeightError
from lowbit.plan import make_plan
from lowbit.recipe import Recipe
from tests.models import same, tiny_model


def changes(model, **recipe):
    return output_changes(model, make_plan(model, Recipe.parse({"target_bits": 4, **recipe})))


def test_a_matrix_that_the_output_does_not_depend_on_changes_nothing():
    model = tiny_model("bert", "BertModel")
    model.encoder.layer[1].output.LayerNorm.weight.data.zero_()  # what comes before the last norm is multiplied by zero
    assert {value for found in changes(model).values() for value in found.values()} == {0.0}


def test_more_bits_change_less_and_a_stronger_matrix_changes_more():
    model = tiny_model("bert", "BertModel")
    before = changes(model)
    for found in before.values():
        assert [found[bits] for bits in range(2, 9)] == sorted(found.values(), reverse=True)
    name = "encoder.layer.1.output.dense"
    model.get_submodule(name).weight.data.mul_(3)
    assert changes(model)[name][3] > 2 * before[name][3]


@pytest.mark.parametrize(
    ("arch", "class_name"),
    [
        ("bert", "BertForMaskedLM"),
        ("roberta", "RobertaModel"),
        ("t5", "T5ForConditionalGeneration"),
        ("t5", "T5EncoderModel"),
        ("opt", "OPTForCausalLM"),
        ("gpt2", "GPT2ForSequenceClassification"),
    ],
)
def test_every_block_linear_is_measured_and_the_model_left_as_it_was(arch, class_name):
    model = tiny_model(arch, class_name).train()
    model.base_model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    plan = make_plan(model, Recipe(target_bits=4))
    found = output_changes(model, plan)
    assert list(found) == [entry.name for entry in plan.quantized if entry.kind != "embedding"]
    assert all(value > 0 for widths in found.values() for value in widths.values())
    assert same(before, dict(model.state_dict()))
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())


def test_the_mode_and_the_number_of_threads_do_not_matter(with_threads):
    model = tiny_model("gpt2", "GPT2Model", n_layer=1, resid_pdrop=0.5)
    one, two = with_threads(lambda: changes(model))
    assert one == two == changes(model.train())


def test_only_what_the_recipe_leaves_open():
    recipe = {"overrides": [{"match": "*.query", "scheme": "w8"}], "skip": ["encoder.layer.0.*"]}
    found = changes(tiny_model("bert", "BertModel"), **recipe)
    assert list(found) == [
        f"encoder.layer.1.{name}"
        for name in (
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
    ]


def test_broken_weights_are_named():
    model = tiny_model("bert", "BertModel")
    model.encoder.layer[0].output.LayerNorm.bias.data[0] = float("nan")
    with pytest.raises(WeightError, match="output on random tokens is NaN"):
        changes(model)


def test_widths_go_by_the_weights_alone():
    model = tiny_model("bert", "BertModel")
    assert changes(model, scheme="w4a8s") == changes(model, scheme="w4")
