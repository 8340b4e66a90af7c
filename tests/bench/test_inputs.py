import dataclasses

import pytest
import torch

from lowbit.bench.inputs import (
    BY_LENGTH,
    IN_FILE_ORDER,
    file_order,
    make_inputs,
    parse_shape,
    read_inputs,
    read_texts,
    write_inputs,
)
from lowbit.errors import BenchError
from tests.models import WORDS, tiny_tokenizer


@pytest.mark.parametrize("text", ["", "8", "0x4", "8x", "8x-1", "axb", "8x4x2"])
def test_what_is_no_shape(text):
    with pytest.raises(BenchError, match="rows x tokens"):
        parse_shape(text)


def test_random_inputs_are_the_same_each_time_and_in_the_vocabulary():
    setting, workloads = make_inputs(["2x5", " 1x3"], 2, vocabulary=7)
    assert [(w.name, w.texts, w.batches[0]["input_ids"].shape) for w in workloads] == [
        ("2x5", 2, (2, 5)),
        ("1x3", 1, (1, 3)),
    ]
    assert all(batch["input_ids"].max() < 7 for batch in setting.calibration)
    again, other = make_inputs(["4x4"], 2, vocabulary=7), make_inputs(["2x5"], 2, vocabulary=7)
    assert torch.equal(other[1][0].batches[0]["input_ids"], workloads[0].batches[0]["input_ids"])
    for one, two in zip(again[0].calibration, setting.calibration, strict=True):  # whatever the shapes
        assert torch.equal(one["input_ids"], two["input_ids"])


def test_texts_are_padded_in_true_lengths_and_shapes_are_cut_from_them():
    tokenizer = tiny_tokenizer("bert")
    texts = [" ".join(WORDS[: 1 + number % 5]) for number in range(40)]
    setting, workloads = make_inputs(["2x50"], 2, vocabulary=9, tokenizer=tokenizer, texts=texts)
    shape, ordered, sorted_ = workloads
    assert (ordered.name, sorted_.name) == (IN_FILE_ORDER, BY_LENGTH)
    assert ordered.texts == sorted_.texts == 40
    assert [len(batch["input_ids"]) for batch in ordered.batches] == [32, 8]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert ordered.batches[0]["attention_mask"].sum(1).tolist() == lengths[:32]
    assert sum(batch["attention_mask"].sum() for batch in sorted_.batches) == sum(lengths)
    stream = [token for text in texts for token in tokenizer(text)["input_ids"]]
    assert shape.batches[0]["input_ids"].flatten().tolist() == stream[:100]
    assert setting.varied
    assert len(setting.texts) == len(setting.calibration) == 40
    assert setting.calibration[3]["input_ids"][0].tolist() == tokenizer(setting.texts[3])["input_ids"]


def test_texts_need_a_tokenizer():
    with pytest.raises(BenchError, match="tokenizer"):
        make_inputs([], 2, vocabulary=9, texts=["a"])


def test_batches_in_file_order():
    assert file_order(33) == [list(range(32)), [32]]


def test_read_texts(tmp_path):
    (tmp_path / "texts").write_bytes("a\n \nb\u2028c\r\n".encode())
    assert read_texts(tmp_path / "texts") == ["a", "b\u2028c\r"] or read_texts(tmp_path / "texts") == ["a", "b\u2028c"]
    (tmp_path / "empty").write_text("\n")
    for name in ("empty", "absent"):
        with pytest.raises(BenchError, match=name):
            read_texts(tmp_path / name)


def test_what_processes_are_given_is_written_and_read_exactly(tmp_path):
    setting, workloads = make_inputs(["2x5", "1x3"], 3, vocabulary=50)
    setting = dataclasses.replace(setting, texts=("ä text", "another"), varied=True)
    write_inputs(tmp_path / "inputs.json", setting, workloads)
    read, found = read_inputs(tmp_path / "inputs.json")
    assert (read.threads, read.texts, read.varied) == (3, ("ä text", "another"), True)
    assert [(each.name, each.texts) for each in found] == [("2x5", 2), ("1x3", 1)]
    batches = [*setting.calibration, *(batch for each in workloads for batch in each.batches)]
    again = [*read.calibration, *(batch for each in found for batch in each.batches)]
    for one, other in zip(batches, again, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
