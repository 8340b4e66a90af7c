import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.adapter import load_classifier
from lowbit.checkpoint import load_tokenizer
from lowbit.data import encode
from lowbit.errors import DataError, SchemeError
from lowbit.loop import (
    batches,
    check_lengths,
    check_sizes,
    default_device,
    isolated_rng,
    length_order,
    predict_logits,
    trainable_attention,
    use_bf16,
)
from lowbit.loop.passes import cpu_has_bf16
from tests.models import tiny_model
from tests.tiny import BACKBONES, random_states, toy_rows

CPU = torch.device("cpu")


def draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]


def test_isolated_rng_gives_the_states_back():
    before = random_states()
    with isolated_rng(5):
        draws()
    assert random_states() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_isolated_rng_gives_the_states_back_after_an_exception(error):
    def fail():
        with isolated_rng(5):
            draws()
            raise error

    before = random_states()
    with pytest.raises(error):
        fail()
    assert random_states() == before


def test_isolated_rng_depends_on_the_seed_only():
    found = []
    for seed in (3, 3, 4):
        with isolated_rng(seed):
            found.append(draws())
        draws()
    assert found[0] == found[1]
    assert all(one != other for one, other in zip(found[0], found[2], strict=True))


def test_isolated_rng_can_be_nested():
    with isolated_rng(1):
        expected = draws(), draws()
    with isolated_rng(1):
        first = draws()
        with isolated_rng(2):
            draws()
        assert (first, draws()) == expected


def test_a_named_precision_is_obeyed():
    assert use_bf16("bf16", CPU) is True
    assert use_bf16("fp32", CPU) is False
    with pytest.raises(SchemeError, match="unknown precision 'fp16'; use one of auto, fp32, bf16"):
        use_bf16("fp16", CPU)


@pytest.mark.parametrize(("avx512", "amx"), [(True, False), (False, True), (False, False)])
def test_auto_asks_for_bf16_instructions_on_a_processor(monkeypatch, avx512, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert cpu_has_bf16() is (avx512 or amx)
    monkeypatch.setattr("lowbit.loop.passes.cpu_has_bf16", cpu_has_bf16)
    assert use_bf16("auto", CPU) is (avx512 or amx)
    model = SimpleNamespace(config=SimpleNamespace(model_type="deberta"))
    assert use_bf16("auto", CPU, model) is False
    assert use_bf16("bf16", CPU, model) is True


@pytest.mark.parametrize("native", [True, False])
def test_auto_asks_for_native_bf16_on_a_gpu(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert use_bf16("auto", torch.device("cuda")) is native


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30))
def test_length_order_is_a_stable_permutation_longest_first(lengths):
    order = length_order([{"input_ids": [0] * length} for length in lengths])
    assert sorted(order) == list(range(len(lengths)))
    assert [(-lengths[row], row) for row in order] == sorted((-lengths[row], row) for row in order)


@given(st.lists(st.integers(0, 1500), max_size=60))
def test_a_batch_has_as_many_rows_as_its_tokens_allow(lengths):
    found = list(batches([{"input_ids": range(length)} for length in lengths], None))
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
    previous = 1500
    for number, batch in enumerate(found):
        longest = max(lengths[row] for row in batch)
        assert longest <= previous
        assert len(batch) == 1 or len(batch) * longest <= 1024
        if number < len(found) - 1:
            assert (len(batch) + 1) * longest > 1024  # one row more would not have fitted
        previous = min(lengths[row] for row in batch)


def test_a_fixed_number_of_rows_is_kept():
    found = list(batches([{"input_ids": range(length)} for length in (3, 2000, 5, 4, 1)], 2))
    assert found == [[1, 2], [3, 0], [4]]
    assert list(batches([], 2)) == list(batches([], None)) == []


@pytest.fixture(scope="module")
def classifier(tiny):
    """Calls with an architecture; gives a float classifier in eval mode, its tokenizer and rows of unequal length."""

    def make(arch):
        folder = tiny.model(arch)
        model, _ = load_classifier(folder, ("no", "yes"), seed=0)
        tokenizer = load_tokenizer(folder)
        return model.eval(), tokenizer, encode(toy_rows(), tokenizer, 16)

    return make


@pytest.mark.parametrize("arch", BACKBONES)
def test_logits_are_those_of_each_row_alone(classifier, arch):
    model, tokenizer, rows = classifier(arch)
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in rows]
    expected = torch.stack(alone)
    assert expected.std(dim=0).min() > 1e-3  # rows differ, so a wrong order cannot pass
    for batch_size in (1, 5, 100):
        found = predict_logits(model, tokenizer, rows, batch_size=batch_size, precision="fp32")
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_logits_are_in_the_order_of_the_rows(classifier):
    model, tokenizer, rows = classifier("bert")
    lengths = [len(row["input_ids"]) for row in rows]
    assert lengths != sorted(lengths)
    assert lengths != sorted(lengths, reverse=True)
    forward = predict_logits(model, tokenizer, rows, batch_size=4, precision="fp32")
    backward = predict_logits(model, tokenizer, rows[::-1], batch_size=4, precision="fp32")
    torch.testing.assert_close(backward.flip(0), forward, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_was_and_dropout_is_off(classifier, training):
    model, tokenizer, rows = classifier("bert")
    expected = predict_logits(model, tokenizer, rows, precision="fp32")
    model.train(training)
    found = predict_logits(model, tokenizer, rows, precision="fp32")
    assert model.training is training
    assert model.bert.encoder.layer[0].output.dropout.training is training
    assert torch.equal(found, expected)
    assert not found.requires_grad


def test_labels_do_not_reach_the_model_and_rows_are_not_changed(classifier):
    model, tokenizer, rows = classifier("bert")
    marked = [row | {"labels": 99} for row in rows]
    assert torch.equal(predict_logits(model, tokenizer, marked), predict_logits(model, tokenizer, rows))
    assert all(row["labels"] == 99 for row in marked)


def test_bf16_is_used_on_demand(classifier):
    model, tokenizer, rows = classifier("bert")
    exact = predict_logits(model, tokenizer, rows, precision="fp32")
    rounded = predict_logits(model, tokenizer, rows, precision="bf16")
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.05)


def test_progress_counts_rows(classifier):
    model, tokenizer, rows = classifier("bert")
    calls = []
    predict_logits(model, tokenizer, rows, batch_size=10, progress=lambda *call: calls.append(call))
    assert calls == [(0, 24, "rows"), (10, 24, "rows"), (20, 24, "rows"), (24, 24, "rows")]


@pytest.mark.parametrize(("arch", "positions"), [("bert", 24), ("roberta", 22), ("opt", 24), ("gpt2", 24)])
def test_a_row_that_is_too_long_is_refused_and_the_longest_one_runs(arch, positions):
    model = tiny_model(arch, BACKBONES[arch])
    check_lengths(model, [{"input_ids": [3]}, {"input_ids": [3] * positions}])
    with torch.no_grad():
        model(torch.full((1, positions), 3), attention_mask=torch.ones(1, positions, dtype=torch.long))
    with pytest.raises(DataError, match=f"a row has {positions + 1} tokens, the model takes {positions}; lower"):
        check_lengths(model, [{"input_ids": [3]}, {"input_ids": [3] * (positions + 1)}])


def test_relative_positions_have_no_end():
    check_lengths(tiny_model("t5", "T5EncoderModel"), [{"input_ids": [3] * 5000}])


def test_predict_logits_checks_lengths(classifier):
    model, tokenizer, rows = classifier("bert")
    with pytest.raises(DataError, match="a row has 30 tokens"):
        predict_logits(model, tokenizer, [*rows, {"input_ids": [3] * 30}])


def test_sizes_must_be_positive():
    check_sizes(1, None)
    check_sizes(1, 1)
    for sizes in [(0, None), (-1, 5), (1, 0), (1, -3)]:
        with pytest.raises(SchemeError, match="must be positive"):
            check_sizes(*sizes)


def test_default_device_is_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_device().type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_device().type == "cpu"


def attention_calls(device, bf16):
    """The kernels that a step of attention calls inside the block."""
    q, k, v = (torch.randn(1, 2, 4, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    with trainable_attention(torch.device(device), bf16), torch.profiler.profile() as profile:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
    return {event.key for event in profile.key_averages()}


def test_attention_in_bf16_on_cpus_is_not_the_fused_one():
    fused = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"
    assert fused not in attention_calls("cpu", True)
    assert fused in attention_calls("cpu", False)
    assert fused in attention_calls("cuda", True)
