"""Networks that turn noise into states."""

import pytest
import torch

from lowbit.errors import CheckpointError, DataError, UnsupportedModelError
from lowbit.zeroshot.generator import LanguageModelGenerator, TransformerGenerator
from lowbit.zeroshot.pieces import ordinary_ids
from tests.models import tiny_model, tiny_tokenizer
from tests.tiny import random_states


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=["opt", "opt-projected", "gpt2", "llama", "transformer"])
def generator(request):
    if request.param == "transformer":
        return TransformerGenerator(width=32, heads=4, seed=1)
    class_name = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}.get(request.param, "OPTForCausalLM")
    arch = request.param.removesuffix("-projected")
    return LanguageModelGenerator(tiny_model(request.param, class_name), tiny_tokenizer(arch))


def test_states_follow_from_the_generator_of_random_numbers_alone(generator):
    before = random_states()
    states = generator.states(3, 5, rng())
    assert random_states() == before
    assert states.shape == (3, 5, generator.width)
    assert torch.equal(states, generator.states(3, 5, rng()))
    assert not torch.equal(states, generator.states(3, 5, rng(1)))


def test_every_parameter_can_be_trained(generator):
    generator.zero_grad()
    (generator.states(3, 5, rng()) ** 2 * torch.arange(generator.width)).sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
    moved = [name for name, parameter in generator.named_parameters() if parameter.grad.abs().sum() > 0]
    assert len(moved) >= 0.9 * len(list(generator.parameters()))


def test_states_say_what_comes_next():
    model, tokenizer = tiny_model("opt-projected", "OPTForCausalLM"), tiny_tokenizer("opt")
    generator = LanguageModelGenerator(model, tokenizer)
    read = []
    handle = model.base_model.register_forward_pre_hook(lambda _, args, named: read.append(named), with_kwargs=True)
    states = generator.states(3, 5, rng())
    handle.remove()
    ids = read[0]["input_ids"]
    assert set(ids.flatten().tolist()) <= set(ordinary_ids(tokenizer).tolist())
    torch.testing.assert_close(states @ generator.output_table.t(), model(input_ids=ids).logits)


def test_a_folder_is_loaded_in_float32(tiny):
    folder = tiny.model("opt", dtype=torch.bfloat16)
    before = random_states()
    generator = LanguageModelGenerator.load(folder)
    assert random_states() == before
    assert {parameter.dtype for parameter in generator.parameters()} == {torch.float32}
    assert not any(module.training for module in generator.model.modules())


def test_the_built_in_one_follows_from_its_seed():
    before = random_states()
    first, again, other = (TransformerGenerator(32, seed=seed).state_dict() for seed in (3, 3, 4))
    assert random_states() == before
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    layers = [first[f"encoder.layers.{layer}.linear1.weight"] for layer in (0, 1)]
    assert not torch.equal(*layers)


def test_what_cannot_generate_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="BertModel predicts no tokens"):
        LanguageModelGenerator(tiny_model("bert", "BertModel"), tiny_tokenizer("bert"))
    with pytest.raises(CheckpointError):
        LanguageModelGenerator.load(tmp_path / "nothing")
    generator = LanguageModelGenerator(tiny_model("opt", "OPTForCausalLM"), tiny_tokenizer("opt"))
    with pytest.raises(DataError, match="24 positions, 25 are asked for"):
        generator.states(1, 25, rng())
