"""Learning from a teacher."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import DataCollatorWithPadding

import lowbit
from lowbit.adapter import load_causal_lm, load_classifier
from lowbit.arch import is_head
from lowbit.checkpoint import load_tokenizer
from lowbit.data import encode, text_data
from lowbit.errors import AdapterError
from lowbit.recipe import Recipe
from lowbit.tuning import METHODS
from lowbit.tuning.distill import distillation, label_loss
from tests.models import CLASSIFIERS, WORDS, save_tiny, tiny_batch, tiny_tokenizer
from tests.tiny import options, toy_data


@pytest.fixture(scope="module")
def teachers(tiny, tmp_path_factory):
    """By architecture, the folder of a classifier fine-tuned for the toy task."""
    folder, made = tmp_path_factory.mktemp("teachers"), {}

    def teacher(arch):
        if arch not in made:
            chosen = options(epochs=3, learning_rate=3e-3)
            result = lowbit.tune(tiny.model(arch), folder / arch, toy_data(), method="full", options=chosen)
            made[arch] = result.path
        return made[arch]

    return teacher


def classifier(tiny, arch, seed):
    """A tiny classifier without dropout; its head goes by the seed."""
    return load_classifier(tiny.model(arch), ("no", "yes"), seed=seed)[0].eval()


def batch(model):
    return {**tiny_batch(model.config), "labels": torch.tensor([0, 1])}


@pytest.mark.parametrize(("arch", "class_name"), CLASSIFIERS)
def test_the_loss_is_the_sum_of_three(tiny, arch, class_name):
    student, teacher = classifier(tiny, arch, 0), classifier(tiny, arch, 1)
    assert type(student).__name__ == class_name
    teacher.get_input_embeddings().weight.data.mul_(2)
    for name, module in teacher.named_modules():
        if is_head(teacher, name) and isinstance(module, torch.nn.Linear):
            module.weight.data.mul_(5)
    inputs = batch(student)
    with torch.no_grad():
        found = distillation(teacher)(student, inputs)
        outputs = [model(**inputs, output_hidden_states=True) for model in (student, teacher)]
        of_labels = label_loss(student, inputs)
    logits = [output.logits.log_softmax(-1) for output in outputs]
    divergence = F.kl_div(*logits, reduction="batchmean", log_target=True)
    assert divergence > 1e-4
    # Of every layer, of both stacks of T5; the decoder reads as many tokens as the encoder.
    stacks = ("encoder_hidden_states", "decoder_hidden_states") if arch == "t5" else ("hidden_states",)
    layers = [[states for stack in stacks for states in getattr(output, stack)[1:]] for output in outputs]
    assert layers[0][-1].shape == (2, 9, 32)
    hidden = _mean_error(*layers, inputs["attention_mask"].bool())
    assert hidden > 1e-3
    torch.testing.assert_close(found, of_labels + divergence + hidden)


def _mean_error(ours, theirs, kept):
    """The relative squared error of each layer and row where ``kept`` is set, their mean."""
    pairs = [(a[row][kept[row]], b[row][kept[row]]) for a, b in zip(ours, theirs, strict=True) for row in range(2)]
    return torch.stack([(a - b).square().sum() / b.square().sum() for a, b in pairs]).mean()


def test_a_model_that_is_its_own_teacher_has_the_labels_loss_only(tiny):
    student = classifier(tiny, "bert", 0)
    inputs = batch(student)
    torch.testing.assert_close(distillation(classifier(tiny, "bert", 0))(student, inputs), label_loss(student, inputs))


def test_the_teacher_is_frozen_and_sees_no_dropout(tiny):
    student, teacher = classifier(tiny, "bert", 0), classifier(tiny, "bert", 1).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    loss = distillation(teacher)
    losses = [loss(student, batch(student)) for _ in range(2)]
    assert torch.equal(*losses)
    losses[0].backward()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert student.classifier.weight.grad is not None


def test_what_the_teacher_says_is_followed_whatever_the_labels_are(tiny):
    """Without the labels' loss, the gradient of the logits is that of the divergence."""
    student, teacher = classifier(tiny, "bert", 0), classifier(tiny, "bert", 1)
    teacher.classifier.load_state_dict({"weight": 5 * teacher.classifier.weight, "bias": torch.tensor([3.0, -3.0])})
    inputs = batch(student)
    gradients = [
        torch.autograd.grad(loss(student, inputs), student.classifier.bias)[0]
        for loss in (distillation(teacher), label_loss)
    ]
    with torch.no_grad():
        ours, theirs = (model(**inputs).logits.softmax(-1) for model in (student, teacher))
    torch.testing.assert_close(gradients[0] - gradients[1], (ours - theirs).mean(dim=0))


def test_every_token_of_a_language_model_counts(tiny):
    student, teacher = (load_causal_lm(tiny.model("opt", seed=seed), dtype=torch.float32).eval() for seed in (0, 1))
    ids = torch.arange(3, 19).view(2, 8)
    inputs = {"input_ids": ids, "labels": ids}
    with torch.no_grad():
        ours, theirs = (model(**inputs, output_hidden_states=True) for model in (student, teacher))
        found = distillation(teacher)(student, inputs)
    logits = [output.logits.log_softmax(-1).view(16, -1) for output in (ours, theirs)]
    hidden = _mean_error(ours.hidden_states[1:], theirs.hidden_states[1:], torch.ones(2, 8, dtype=torch.bool))
    divergence = F.kl_div(*logits, reduction="batchmean", log_target=True)
    torch.testing.assert_close(found, ours.loss + divergence + hidden)


@pytest.mark.parametrize("method", METHODS)
def test_a_teacher_changes_the_result_of_every_method(tiny, teachers, tmp_path, method):
    start, needed = tiny.start(method)
    files = []
    for name, teacher in (("alone", None), ("taught", teachers("bert"))):
        chosen = options(batch_size=24, teacher=teacher, recipe=Recipe.parse("w2"), **needed)  # one step
        result = lowbit.tune(start, tmp_path / name, toy_data(), method=method, options=chosen)
        (file,) = result.path.glob("*.safetensors")
        files.append(load_file(file))
    assert files[0].keys() == files[1].keys()
    assert any(not torch.equal(value, files[1][name]) for name, value in files[0].items())


@pytest.mark.parametrize("arch", ["bert", "t5", "gpt2"])
def test_a_student_of_two_bits_comes_closer_to_its_teacher(tiny, teachers, tmp_path, arch):
    taught_by, distances = lowbit.load(teachers(arch)), []
    tokenizer = load_tokenizer(teachers(arch))
    rows = DataCollatorWithPadding(tokenizer)(encode(toy_data().train, tokenizer, 16))
    for name, teacher in (("alone", None), ("taught", teachers(arch))):
        chosen = options(epochs=4, learning_rate=1e-3, teacher=teacher, recipe=Recipe.parse("w2"))
        result = lowbit.tune(teachers(arch), tmp_path / name, toy_data(), method="qat", options=chosen)
        with torch.no_grad():
            student = lowbit.load(result.path)
            distances.append(distillation(taught_by)(student, rows) - label_loss(student, rows))
    assert distances[1] < 0.9 * distances[0]


def test_a_language_model_teaches(tiny, tmp_path):
    (tmp_path / "train.txt").write_text("\n".join([" ".join(WORDS)] * 20))
    data = text_data(tmp_path / "train.txt")
    files = []
    for name, teacher in (("alone", None), ("taught", tiny.model("gpt2", seed=1))):
        result = lowbit.tune(tiny.backbone("gpt2"), tmp_path / name, data, options=options(teacher=teacher))
        files.append((result.path / "task_adapter.safetensors").read_bytes())
    assert files[0] != files[1]


def other_tokens(folder):
    tokenizer = tiny_tokenizer("bert")
    tokenizer.add_tokens(["brand-new"])
    save_tiny(folder, "bert", "BertForSequenceClassification")
    tokenizer.save_pretrained(folder)
    return folder


def other_width(folder):
    save_tiny(folder, "bert", "BertForSequenceClassification", hidden_size=48)
    tiny_tokenizer("bert").save_pretrained(folder)
    return folder


REFUSED = {
    "tokens": (lambda tiny, folder: other_tokens(folder), "reads other tokens than the model; give one with the same"),
    "head": (lambda tiny, folder: tiny.model("bert"), "has no trained 'classifier.bias'; fine-tune it for the task"),
    "width": (lambda tiny, folder: other_width(folder), "has hidden states of width 48, the model of 32; give one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_teacher_that_does_not_fit_is_refused(tiny, tmp_path, name):
    make, message = REFUSED[name]
    teacher = make(tiny, tmp_path / "teacher")
    with pytest.raises(AdapterError, match=f"the teacher {teacher} {message}"):
        lowbit.tune(tiny.backbone("bert"), tmp_path / "out", toy_data(), options=options(teacher=teacher))
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_other_labels_or_in_few_bits_is_refused(tiny, teachers, tmp_path):
    swapped = toy_data(("yes", "no"))
    with pytest.raises(
        AdapterError, match=r"knows the labels no, yes, the task yes, no; give one with the same labels"
    ):
        lowbit.tune(tiny.backbone("bert"), tmp_path / "out", swapped, options=options(teacher=teachers("bert")))
    quantized = lowbit.quantize(teachers("bert"), "w4", output=tmp_path / "quantized").path
    with pytest.raises(AdapterError, match="is quantized; give the float model"):
        lowbit.tune(tiny.backbone("bert"), tmp_path / "out", toy_data(), options=options(teacher=quantized))
    assert not (tmp_path / "out").exists()
