"""Networks that turn noise into states."""

import pytest
import torch
from torch import nn

from lowbit.errors import CheckpointError, DataError, UnsupportedModelError
from lowbit.zeroshot.generator import LanguageModelGenerator, TransformerGenerator
from lowbit.zeroshot.pieces import ordinary_ids
from tests.models import tiny_model, tiny_tokenizer
from tests.tiny import random_states

SAME = nn.Identity()


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
    states = generator.states(3, 5, rng(), SAME)
    assert random_states() == before
    assert states.values.shape == (3, 5, generator.width)
    assert torch.equal(states.values, generator.states(3, 5, rng(), SAME).values)
    assert not torch.equal(states.values, generator.states(3, 5, rng(1), SAME).values)


def test_every_parameter_can_be_trained(generator):
    generator.zero_grad()
    (generator.states(3, 5, rng(), SAME).values ** 2 * torch.arange(generator.width)).sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
    moved = [name for name, parameter in generator.named_parameters() if parameter.grad.abs().sum() > 0]
    assert len(moved) >= 0.9 * len(list(generator.parameters()))


def test_states_are_those_that_led_to_the_tokens():
    """Of a text that begins one token before: its model's own states, read off the whole text at once."""
    model, tokenizer = tiny_model("opt-projected", "OPTForCausalLM"), tiny_tokenizer("opt")
    generator = LanguageModelGenerator(model, tokenizer)
    read = []
    handle = model.base_model.register_forward_pre_hook(lambda _, args, named: read.append(named), with_kwargs=True)
    states = generator.states(3, 6, rng(), SAME)
    handle.remove()
    ids = read[-1]["input_ids"]
    start = len(tokenizer("")["input_ids"])
    assert states.tokens.shape == (3, 6)
    assert torch.equal(ids[:, start + 1 :], states.tokens[:, :-1])
    assert set(states.tokens.flatten().tolist()) <= set(ordinary_ids(tokenizer).tolist())
    logits = model(input_ids=ids).logits[:, start:]
    torch.testing.assert_close(states.values @ generator.output_table.t(), logits)
    likeliest = logits[:, :3, ordinary_ids(tokenizer)].argmax(-1)
    assert torch.equal(states.tokens[:, :3], ordinary_ids(tokenizer)[likeliest])


def test_what_is_written_follows_the_projection():
    """One that turns states around makes the unlikeliest tokens the likeliest ones."""
    generator = LanguageModelGenerator(tiny_model("opt", "OPTForCausalLM"), tiny_tokenizer("opt"))
    turned = nn.Linear(generator.width, generator.width, bias=False)
    turned.weight.data = -torch.eye(generator.width)
    states = generator.states(3, 2, rng(), turned)
    ordinary = ordinary_ids(generator.tokenizer)
    unlikeliest = (states.values @ generator.output_table.t())[..., ordinary].argmin(-1)
    assert torch.equal(states.tokens, ordinary[unlikeliest])


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
    room = 24 - len(generator.tokenizer("")["input_ids"])
    assert generator.states(1, room, rng(), SAME).tokens.shape == (1, room)
    with pytest.raises(DataError, match=f"{room} positions, {room + 1} are asked for"):
        generator.states(1, room + 1, rng(), SAME)
