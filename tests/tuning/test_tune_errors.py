"""What stops ``tune``, and that nothing half written is left then."""

import dataclasses
from pathlib import Path

import pytest

import lowbit
from lowbit.data import table_data
from lowbit.errors import AdapterError, CheckpointError, DataError, OutputExistsError, SchemeError
from lowbit.tuning import METHODS, trainer
from tests.tiny import options, random_states, toy_data


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("when", ["steps", "rows"])
def test_an_interrupt_leaves_nothing_half_written(tiny, tmp_path, method, when):
    def progress(done, total, what):
        if what == when and done >= min(2, total):
            raise KeyboardInterrupt

    base, needed = tiny.start(method)
    states = random_states()
    with pytest.raises(KeyboardInterrupt):
        lowbit.tune(base, tmp_path / "out", toy_data(), method=method, options=options(**needed), progress=progress)
    assert random_states() == states
    if when == "steps":
        assert list(tmp_path.iterdir()) == []
    else:  # scoring comes after the result is written, whole
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        lowbit.load(*((base, tmp_path / "out") if METHODS[method].from_backbone else (tmp_path / "out",)))


def test_an_existing_output_is_refused_before_anything_is_read(tiny, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    for output in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(OutputExistsError, match="exists already"):
            lowbit.tune("no-such/model", output, toy_data())
    assert (tmp_path / "mine.txt").read_text() == "x"


def no_outliers(tiny):
    return tiny.backbone("bert", recipe="w4o0")


REFUSED = {
    "float model": (
        lambda tiny: tiny.model("bert"),
        {},
        AdapterError,
        "'outliers' cannot start from .* quantize it first",
    ),
    "full of backbone": (None, {"method": "full"}, AdapterError, "'full' cannot start from .*: give the float model"),
    "ptq of backbone": (None, {"method": "ptq"}, AdapterError, "'ptq' cannot start from .*: give the float model"),
    "no outliers": (no_outliers, {}, AdapterError, "no outliers to tune; quantize it with some, as in --scheme w4"),
    "method": (None, {"method": "magic"}, SchemeError, "unknown method 'magic'; use one of outliers, random, "),
    "labels": (
        lambda tiny: tiny.backbone("bert", "BertForSequenceClassification"),
        {"data": toy_data(("a", "b", "c"))},
        CheckpointError,
        "'classifier.* is .*; start from the model without a task head",
    ),
    "merged": (
        lambda tiny: tiny.merged("bert"),
        {"data": toy_data(None)},
        CheckpointError,
        "'classifier.* is .*; start from the model without a task head",
    ),
    "encoder": (
        lambda tiny: tiny.backbone("t5", "T5EncoderModel"),
        {},
        CheckpointError,
        "lacks 'transformer.decoder.* of a T5ForSequenceClassification; load the class of its config.json",
    ),
    "float encoder": (
        lambda tiny: tiny.model("t5", "T5EncoderModel"),
        {"method": "full"},
        CheckpointError,
        "lacks 'transformer.decoder.* of a T5ForSequenceClassification; start from a whole model",
    ),
    "no rows": (None, {"data": dataclasses.replace(toy_data(), train=None)}, DataError, "has no training rows"),
    "metric": (
        None,
        {"data": dataclasses.replace(toy_data(), metrics=("accuracy", "typo"))},
        DataError,
        "unknown metric 'typo'; use one of",
    ),
    "no model": (lambda tiny: Path("/no/such/folder"), {}, CheckpointError, "is not a model folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_before_training(tiny, tmp_path, monkeypatch, name):
    model, changes, error, message = REFUSED[name]
    arguments = {"data": toy_data(), "options": options(), "method": "outliers"} | changes
    folder = tiny.backbone("bert") if model is None else model(tiny)
    monkeypatch.setattr(trainer, "train", lambda *_: pytest.fail("training was started"))
    with pytest.raises(error, match=message):
        lowbit.tune(folder, tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_rows_longer_than_the_model_are_refused(tiny, tmp_path):
    data = toy_data()
    data.train.texts[3] = "good " * 40
    with pytest.raises(DataError, match="a row has 42 tokens, the model takes 24; lower the maximum length"):
        lowbit.tune(tiny.backbone("bert"), tmp_path / "out", data, options=options(max_length=60))
    assert list(tmp_path.iterdir()) == []
    lowbit.tune(tiny.backbone("bert"), tmp_path / "out", data, options=options(max_length=24))


def test_a_label_outside_the_set_names_file_and_line(tiny, tmp_path):
    train, evaluation = tmp_path / "train.csv", tmp_path / "eval.csv"
    train.write_text("t,l\ngood film,yes\nbad film,no\n")
    evaluation.write_text("t,l\ngood film,yes\nbad film,No\n")
    with pytest.raises(DataError, match=r"eval.csv:3: label 'No' is not one of no, yes; correct this row"):
        table_data(train, evaluation, text="t", label="l")
    result = lowbit.tune(
        tiny.backbone("bert"), tmp_path / "out", table_data(train, text="t", label="l"), options=options()
    )
    assert (result.task, result.rows) == ("train", 2)
