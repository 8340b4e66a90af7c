"""Distances between student and teacher: of outputs, block by block, and on generated texts."""

import pytest
import torch

from lowbit.calibration import generated_inputs
from lowbit.losses import hidden_distance
from lowbit.quantize import fake_quantize_model
from lowbit.zeroshot import parse_recipe
from lowbit.zeroshot.objective import BlockObjective, OutputObjective, Yardstick
from lowbit.zeroshot.sources import RandomTokens
from lowbit.zeroshot.student import block_paths, copy_of, fake_linears, forward, load_teacher, parameter_groups
from tests.tiny import random_states
from tests.zeroshot.runs import chosen

MODELS = [
    ("bert", "BertForSequenceClassification"),
    ("albert", "AlbertForSequenceClassification"),
    ("t5", "T5ForConditionalGeneration"),
    ("opt", "OPTForCausalLM"),
    ("gpt2", "GPT2LMHeadModel"),
    ("llama", "LlamaForCausalLM"),
]
every_model = pytest.mark.parametrize(("arch", "class_name"), MODELS)


def pair(tiny, arch, class_name, recipe="w2a8"):
    teacher = load_teacher(tiny.model(arch, class_name))
    student = copy_of(teacher)
    fake_quantize_model(student, parse_recipe(recipe))
    batch = RandomTokens(teacher.model, teacher.tokenizer, chosen()).draw(4, torch.Generator().manual_seed(0))
    return teacher, student, batch


@every_model
def test_blocks_are_compared_given_the_input_of_the_teacher(tiny, arch, class_name):
    """What differs in one block shows in that block only, and gradients stay in it."""
    teacher, student, batch = pair(tiny, arch, class_name)
    paths = block_paths(student)
    assert len(paths) == {"albert": 1, "t5": 4}.get(arch, 2)
    untouched = copy_of(teacher)
    objective = BlockObjective(teacher.model, paths)
    with torch.no_grad():
        target = objective.target(batch)
        assert objective.loss(untouched, target, batch) == 0
        whole = objective.loss(student, target, batch)
        parts = []
        for path in paths:
            one = copy_of(teacher)
            one.set_submodule(path, student.get_submodule(path))
            parts.append(objective.loss(one, target, batch))
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
    assert min(parts) > 1e-3
    loss = objective.loss(student, target, batch)
    gradients = torch.autograd.grad(loss, [module.latent for module in fake_linears(student).values()])
    assert all(bool(gradient.any()) for gradient in gradients)


def test_the_first_block_by_hand(tiny):
    teacher, student, batch = pair(tiny, "bert", "BertForSequenceClassification")
    objective = BlockObjective(teacher.model, ["bert.encoder.layer.0"])
    with torch.no_grad():
        found = objective.loss(student, objective.target(batch), batch)
        student.bert.embeddings = teacher.model.bert.embeddings
        ours, theirs = (forward(model, batch).hidden_states[1] for model in (student, teacher.model))
    torch.testing.assert_close(found, hidden_distance(ours, theirs, batch.inputs["attention_mask"]))


@every_model
def test_outputs_of_the_teacher_have_no_distance(tiny, arch, class_name):
    teacher, student, batch = pair(tiny, arch, class_name)
    objective = OutputObjective(teacher.model, 1.0, 1.0)
    measure = Yardstick(teacher, objective)
    with torch.no_grad():
        target = objective.target(batch)
        assert abs(objective.loss(copy_of(teacher), target, batch)) < 1e-6
        assert objective.loss(student, target, batch) > 1e-2
    assert measure(student) > 1e-2 > abs(measure(copy_of(teacher)))
    assert measure(student) == measure(student)


def test_what_is_measured_is_neither_what_gptq_sees_nor_of_its_kind_alone(tiny):
    """In the one half frequent words prevail, in the other all are alike."""
    teacher, _, _ = pair(tiny, *MODELS[0])
    batches = Yardstick(teacher, OutputObjective(teacher.model, 1.0, 1.0))._batches
    assert [len(batch.inputs["input_ids"]) for batch in batches] == [32] * 8
    seen = {tuple(row) for batch in generated_inputs(teacher.model, teacher.tokenizer) for row in _rows(batch)}
    assert not seen & {tuple(row) for batch in batches for row in _rows(batch.inputs)}
    shares = []
    for half in (batches[:4], batches[4:]):
        words = torch.cat([batch.inputs["input_ids"][batch.inputs["input_ids"] > 3] for batch in half])
        shares.append(float(words.bincount().max() / len(words)))
    assert shares[0] > 0.15 > shares[1]


def test_what_is_measured_comes_in_pairs_where_the_model_reads_pairs(tiny):
    teacher, _, _ = pair(tiny, *MODELS[0])
    batches = Yardstick(teacher, OutputObjective(teacher.model, 1.0, 1.0), pairs=1.0)._batches
    assert all((batch.inputs["input_ids"] == 3).sum(1).tolist() == [2] * 32 for batch in batches)


def test_a_language_model_writes_a_third_of_what_is_measured(tiny):
    teacher, student, _ = pair(tiny, *MODELS[0])
    objective = OutputObjective(teacher.model, 1.0, 1.0)
    before = random_states()
    without, measure = Yardstick(teacher, objective), Yardstick(teacher, objective, generator=tiny.model("opt"))
    assert random_states() == before
    assert len(measure._batches) == 12
    for ours, theirs in zip(without._batches, measure._batches, strict=False):
        assert torch.equal(ours.inputs["input_ids"], theirs.inputs["input_ids"])
    assert measure(student) != without(student)


def _rows(inputs):
    return inputs["input_ids"].tolist()


@pytest.mark.parametrize(
    ("arch", "class_name", "recipe"),
    [("opt", "OPTForCausalLM", {"embeddings": "float"}), ("bert", "BertForMaskedLM", {})],
)
def test_tables_of_words_are_not_trained(tiny, arch, class_name, recipe):
    student = copy_of(load_teacher(tiny.model(arch, class_name)))
    fake_quantize_model(student, parse_recipe({"scheme": {"bits": 2, "outliers": None}, **recipe}))
    groups = parameter_groups(student, 1e-3)
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    names = {name for name, parameter in student.named_parameters() if id(parameter) in trained}
    assert {name for name, parameter in student.named_parameters() if parameter.requires_grad} == names
    assert not any(name.endswith(("embed_tokens.weight", "word_embeddings.weight", "decoder.bias")) for name in names)
    assert any(name.endswith("latent") for name in names)
    assert any("norm" in name.lower() for name in names)
    assert len(groups) == 1 + len(fake_linears(student))


def test_static_steps_of_the_inputs_are_trained_at_rates_of_their_own(tiny):
    _, student, _ = pair(tiny, *MODELS[0], recipe="w2a8s")
    rates = {id(parameter): group["lr"] for group in parameter_groups(student, 1e-3) for parameter in group["params"]}
    for module in fake_linears(student).values():
        relative = module.input_scale.item() / module.latent.abs().mean().item()
        assert rates[id(module.input_scale)] == pytest.approx(1e-3 * relative)
