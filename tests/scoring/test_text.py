"""Perplexity beside a naive reference: one row, one token at a time, nothing padded."""

import math
import random

import pytest
import torch

from lowbit.errors import CheckpointError, SchemeError, UnsupportedModelError
from lowbit.scoring import score_text
from tests.models import WORDS, tiny_model, tiny_tokenizer
from tests.tiny import random_states

KINDS = {
    "causal": [("opt", "OPTForCausalLM"), ("gpt2", "GPT2LMHeadModel")],
    "masked": [("bert", "BertForMaskedLM"), ("roberta", "RobertaForMaskedLM")],
    "seq2seq": [("t5", "T5ForConditionalGeneration")],
}
MODELS = [(kind, arch, name) for kind, models in KINDS.items() for arch, name in models]
SPECIAL = {"opt": 0, "gpt2": 0, "bert": 2, "roberta": 2, "t5": 1}  # tokens of a window that are none of the text


def dressed(arch):
    """A tokenizer with what scoring needs: a padding token, and a mask for the masked ones."""
    tokenizer = tiny_tokenizer(arch)
    if arch == "gpt2":
        tokenizer.pad_token = tokenizer.eos_token
    if arch in ("bert", "roberta"):
        tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    return tokenizer


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A text of 41 tokens, with line ends and characters of two bytes."""
    draw = random.Random(3)
    words = draw.choices([*WORDS, "schön"], k=41)
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text("".join(word + draw.choice(" \n") for word in words), encoding="utf-8")
    return path


def reference(kind, model, tokenizer, ids, room, stride):
    """Negative log-likelihoods of all tokens, each from a forward pass of its own."""
    return [NAIVE[kind](model, tokenizer, ids, room, stride, token) for token in range(len(ids))]


def naive_causal(model, tokenizer, ids, room, stride, token):
    seen = [{"opt": 2, "gpt2": 0}[model.config.model_type], *ids]  # seen[token] is the one before ids[token]
    begin = max((token // stride + 1) * stride - room, 0)
    return loss(model(torch.tensor([seen[begin : token + 1]])).logits[0, -1], ids[token])


def naive_masked(model, tokenizer, ids, room, stride, token):
    block = token // stride * stride
    begin = max(block - (room - stride) // 2, 0)
    end = block + stride + (room - stride) - (room - stride) // 2
    masked = list(ids)
    masked[token] = tokenizer.mask_token_id
    left, right = {"[CLS]": ([2], [3]), "<s>": ([0], [2])}[tokenizer.cls_token or tokenizer.bos_token]
    logits = model(torch.tensor([left + masked[begin:end] + right])).logits[0]
    return loss(logits[len(left) + token - begin], ids[token])


def naive_seq2seq(model, tokenizer, ids, room, stride, token):
    block = token // stride * stride
    encoder = [*ids[max(block - (room - stride), 0) : block], tokenizer.eos_token_id]
    decoder = [model.config.decoder_start_token_id, *ids[block:token]]
    logits = model(torch.tensor([encoder]), decoder_input_ids=torch.tensor([decoder])).logits[0]
    return loss(logits[-1], ids[token])


NAIVE = {"causal": naive_causal, "masked": naive_masked, "seq2seq": naive_seq2seq}


def loss(logits, target):
    return float(-logits.detach().double().log_softmax(0)[target])


@pytest.mark.parametrize(("window", "stride"), [(12, 5), (12, None), (9, 1), (22, "room")])
@pytest.mark.parametrize(("kind", "arch", "class_name"), MODELS)
def test_the_naive_reference_agrees(path, kind, arch, class_name, window, stride):
    model, tokenizer = tiny_model(arch, class_name), dressed(arch)
    room = window - SPECIAL[arch]
    given = room if stride == "room" else stride
    ids = tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    expected = reference(kind, model, tokenizer, ids, room, given or room // 2)
    score = score_text(model, tokenizer, path, window=window, stride=given, precision="fp32")
    assert (score.kind, score.window, score.stride) == (kind, window, given or room // 2)
    assert score.tokens == score.scored == len(ids) == 41
    mean = sum(expected) / len(expected)
    assert score.perplexity == pytest.approx(math.exp(mean), rel=1e-5)
    size = len(path.read_bytes())
    assert score.bits_per_byte == pytest.approx(sum(expected) / math.log(2) / size, rel=1e-5)
    assert score.word_perplexity == pytest.approx(math.exp(sum(expected) / 41), rel=1e-5)


@pytest.mark.parametrize(("kind", "arch", "class_name"), MODELS)
def test_context_and_batches(path, kind, arch, class_name):
    """More context changes the score, another batch size does not."""
    model, tokenizer = tiny_model(arch, class_name), dressed(arch)
    scores = [score_text(model, tokenizer, path, window=20, stride=3, batch_size=size).perplexity for size in (1, 7)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    less = score_text(model, tokenizer, path, window=8, stride=3)
    assert less.scored == 41
    assert less.perplexity != pytest.approx(scores[0], rel=1e-4)


def test_chunks_are_the_stride_that_fills_the_window(path):
    model, tokenizer = tiny_model("opt", "OPTForCausalLM"), dressed("opt")
    ids = torch.tensor(tokenizer("</s> " + path.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"])
    total = 0.0
    for start in range(0, 41, 10):
        logits = model(ids[None, start : start + 10]).logits[0]
        target = ids[start + 1 : start + 11]
        total += float(torch.nn.functional.cross_entropy(logits[: len(target)], target, reduction="sum").detach())
    score = score_text(model, tokenizer, path, window=10, stride=10, precision="fp32")
    assert score.perplexity == pytest.approx(math.exp(total / 41), rel=1e-5)


def test_the_default_window_is_the_models(path):
    for arch, class_name, most in [("opt", "OPTForCausalLM", 24), ("roberta", "RobertaForMaskedLM", 22)]:
        model, tokenizer = tiny_model(arch, class_name), dressed(arch)
        score = score_text(model, tokenizer, path)
        assert (score.window, score.stride) == (most, (most - SPECIAL[arch]) // 2)
        with pytest.raises(SchemeError, match=f"a window of {most + 1} tokens does not fit, the model takes {most};"):
            score_text(model, tokenizer, path, window=most + 1)
    model = tiny_model("t5", "T5ForConditionalGeneration")
    assert score_text(model, dressed("t5"), path).window == 512
    model = tiny_model("gpt2", "GPT2LMHeadModel", n_positions=1030)
    assert score_text(model, dressed("gpt2"), path).window == 1024


def test_a_sample_scores_the_tokens_it_draws(path):
    model, tokenizer = tiny_model("bert", "BertForMaskedLM"), dressed("bert")
    whole = score_text(model, tokenizer, path, window=12)
    assert score_text(model, tokenizer, path, window=12, sample=100) == whole
    samples = [score_text(model, tokenizer, path, window=12, sample=20, seed=seed) for seed in (0, 0, 1)]
    assert samples[0] == samples[1]
    assert samples[0].perplexity != samples[2].perplexity
    for found in samples:
        assert (found.tokens, found.scored) == (41, 20)
        # the mean of the sample stands for the whole text
        assert found.word_perplexity == pytest.approx(found.perplexity)
    single = [score_text(model, tokenizer, path, window=12, sample=1, seed=seed).perplexity for seed in range(30)]
    assert len({round(value, 6) for value in single}) > 10


def test_progress_counts_scored_tokens(path):
    calls = []
    model, tokenizer = tiny_model("opt", "OPTForCausalLM"), dressed("opt")
    score_text(model, tokenizer, path, window=16, batch_size=2, progress=lambda *call: calls.append(call))
    assert calls == [(16, 41, "tokens"), (32, 41, "tokens"), (41, 41, "tokens")]


def test_the_model_is_left_as_it_was_but_for_its_precision(path):
    tokenizer = dressed("opt")
    exact = tiny_model("opt", "OPTForCausalLM").to(torch.bfloat16)
    half = tiny_model("opt", "OPTForCausalLM").to(torch.bfloat16).train()
    states = random_states()
    score = score_text(half, tokenizer, path, precision="fp32")
    assert half.training
    assert half.dtype == torch.float32
    assert random_states() == states
    assert score == score_text(exact.float(), tokenizer, path, precision="fp32")
    assert score.perplexity == pytest.approx(score_text(exact, tokenizer, path, precision="bf16").perplexity, rel=0.02)


def test_a_hopeless_model_has_infinite_perplexity(path):
    model = tiny_model("opt", "OPTForCausalLM")
    model.get_input_embeddings().weight.data *= 1e4
    score = score_text(model, dressed("opt"), path, precision="fp32")
    assert score.perplexity == math.inf
    assert 1000 < score.bits_per_byte < math.inf


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 0}, "stride 0 is not from 1 to 8"),
        ({"stride": 9}, "stride 9 is not from 1 to 8, the tokens of the text in a window of 10"),
        ({"window": 2}, "stride 1 is not from 1 to 0"),
        ({"batch_size": 0}, "must be positive"),
        ({"sample": 0}, "cannot score a sample of 0 tokens"),
    ],
)
def test_sizes_that_do_not_fit(path, settings, message):
    model, tokenizer = tiny_model("bert", "BertForMaskedLM"), dressed("bert")
    with pytest.raises(SchemeError, match=message):
        score_text(model, tokenizer, path, **({"window": 10} | settings))


def test_samples_are_for_masked_models(path):
    model = tiny_model("opt", "OPTForCausalLM")
    with pytest.raises(SchemeError, match="a sample of 5 tokens; samples of 1 or more are for masked models"):
        score_text(model, dressed("opt"), path, sample=5)


@pytest.mark.parametrize("class_name", ["BertModel", "BertForSequenceClassification"])
def test_other_classes_are_refused(path, class_name):
    with pytest.raises(UnsupportedModelError, match=f"{class_name} is no language model; give a causal, masked or"):
        score_text(tiny_model("bert", class_name), dressed("bert"), path)


def test_tokenizers_without_the_token_that_is_needed(path):
    with pytest.raises(CheckpointError, match="the tokenizer has no mask token"):
        score_text(tiny_model("bert", "BertForMaskedLM"), tiny_tokenizer("bert"), path)
    model, tokenizer = tiny_model("gpt2", "GPT2LMHeadModel"), dressed("gpt2")
    scores = []
    for name in ("bos_token", "eos_token"):
        scores.append(score_text(model, tokenizer, path, window=9).perplexity)
        setattr(tokenizer, name, None)
    assert scores[0] != scores[1]
    with pytest.raises(CheckpointError, match="neither a start nor an end token for a text to begin with; add one"):
        score_text(model, tokenizer, path)
