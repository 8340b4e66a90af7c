import dataclasses
import shutil

import pytest

import lowbit
from lowbit.adapter import read_info, write_adapter
from lowbit.checkpoint import load_tokenizer
from lowbit.data import encode, table_data
from lowbit.errors import AdapterError, CheckpointError, DataError, SchemeError
from lowbit.loop import predict_logits
from tests.models import edit_json, file_bytes
from tests.tiny import BACKBONES, options, random_states, toy_data, toy_rows


@pytest.mark.parametrize("arch", BACKBONES)
def test_adapter_and_merged_model_score_the_same(tiny, arch):
    adapted = lowbit.evaluate(tiny.backbone(arch), toy_data(), adapter=tiny.adapter(arch))
    assert lowbit.evaluate(tiny.merged(arch), toy_data()) == adapted
    assert list(adapted) == ["dev"]
    assert list(adapted["dev"]) == ["accuracy"]


def test_the_score_is_the_share_of_right_answers(tiny):
    backbone, adapter = tiny.backbone("t5"), tiny.adapter("t5", epochs=4, learning_rate=0.1)
    data = dataclasses.replace(toy_data(), evaluations={"dev": toy_rows(seed=5), "train": toy_rows()})
    scores = lowbit.evaluate(backbone, data, adapter=adapter)
    tokenizer = load_tokenizer(backbone)
    for split, rows in data.evaluations.items():
        logits = predict_logits(lowbit.load(backbone, adapter), tokenizer, encode(rows, tokenizer, 16))
        answers = logits.argmax(dim=1).tolist()
        right = sum(answer == label for answer, label in zip(answers, rows.labels, strict=True))
        assert scores[split] == {"accuracy": pytest.approx(right / len(rows))}
    assert scores["train"]["accuracy"] > 0.5


def test_a_fine_tuned_float_model(tiny, tmp_path):
    result = lowbit.tune(
        tiny.model("bert"), tmp_path / "out", toy_data(), method="full", options=options(learning_rate=1e-3)
    )
    assert lowbit.evaluate(result.path, toy_data()) == result.metrics


@pytest.mark.parametrize("method", ["full", "ptq"])
def test_a_fine_tuned_model_knows_its_labels(tiny, tmp_path, method):
    result = lowbit.tune(tiny.model("bert"), tmp_path / "out", toy_data(), method=method, options=options())
    expected = r"was trained on the labels \['no', 'yes'\], the data has \['yes', 'no'\]; give rows"
    with pytest.raises(DataError, match=expected):
        lowbit.evaluate(result.path, toy_data(("yes", "no")))


def long_rows():
    """A regression task whose texts only differ after their sixteenth word."""
    data = toy_data(None)
    dev = data.evaluations["dev"]
    texts = [" ".join(["the"] * 17 + text.split()[:2]) for text in dev.texts]
    return dataclasses.replace(data, evaluations={"dev": dataclasses.replace(dev, texts=texts)})


@pytest.fixture
def regression(tiny, tmp_path):
    """A regression adapter that was trained with rows of sixteen tokens."""
    return lowbit.tune(tiny.backbone("gpt2"), tmp_path / "regression", toy_data(None), options=options()).path


def test_the_maximum_length_is_the_adapters_unless_given(tiny, tmp_path, regression):
    backbone = tiny.backbone("gpt2")
    cut = lowbit.evaluate(backbone, long_rows(), adapter=regression)["dev"]
    whole = lowbit.evaluate(backbone, long_rows(), adapter=regression, max_length=24)["dev"]
    assert cut["pearson"] != cut["pearson"]  # nan: all rows are the same
    assert -1 <= whole["pearson"] <= 1
    merged = lowbit.merge(backbone, regression, tmp_path / "merged")
    merged_cut = lowbit.evaluate(merged, long_rows())["dev"]["pearson"]
    assert merged_cut != merged_cut
    assert lowbit.evaluate(merged, long_rows(), max_length=24)["dev"] == whole


def test_batch_size_and_progress_are_passed_on(tiny):
    calls = []
    lowbit.evaluate(
        tiny.backbone("bert"),
        toy_data(),
        adapter=tiny.adapter("bert"),
        batch_size=5,
        progress=lambda *call: calls.append(call),
    )
    assert calls == [(0, 12, "rows"), (5, 12, "rows"), (10, 12, "rows"), (12, 12, "rows")]


def test_nothing_else_is_touched(tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    folders = tiny.backbone("bert"), tiny.adapter("bert")
    before, states = [file_bytes(folder) for folder in folders], random_states()
    capfd.readouterr()
    lowbit.evaluate(folders[0], toy_data(), adapter=folders[1])
    assert capfd.readouterr() == ("", "")
    assert random_states() == states
    assert [file_bytes(folder) for folder in folders] == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("labels", [("yes", "no"), ("a", "b")])
def test_another_label_set_is_refused(tiny, labels):
    message = r"trained on the labels \['no', 'yes'\], the data has \['\w+', '\w+'\]"
    with pytest.raises(DataError, match=message):
        lowbit.evaluate(tiny.backbone("bert"), toy_data(labels), adapter=tiny.adapter("bert"))
    with pytest.raises(DataError, match=message):
        lowbit.evaluate(tiny.merged("bert"), toy_data(labels))


def test_another_number_of_labels_is_refused(tiny):
    for labels in (("no", "yes", "maybe"), None):
        with pytest.raises(DataError, match=r"the data has|needs 1 outputs, the model has 2"):
            lowbit.evaluate(tiny.merged("bert"), toy_data(labels))
    with pytest.raises(DataError, match="task 'toy' needs 3 outputs, the model has 2"):
        lowbit.evaluate(tiny.model("bert", "BertForSequenceClassification"), toy_data(("a", "b", "c")))


def test_a_label_outside_the_models_set_names_file_and_line(tiny, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("t,l\ngood film,yes\nbad film,perhaps\n")
    names = read_info(tiny.adapter("bert")).label_names
    with pytest.raises(DataError, match=r"rows.csv:3: label 'perhaps' is not one of no, yes; correct this row"):
        table_data(None, path, text="t", label="l", label_names=names)


def test_a_task_without_evaluation_rows_is_refused(tiny):
    data = dataclasses.replace(toy_data(), evaluations={})
    with pytest.raises(DataError, match="task 'toy' has no evaluation rows; give an evaluation file"):
        lowbit.evaluate(tiny.merged("bert"), data)


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"max_length": 0}, {"max_length": -1}])
def test_sizes_must_be_positive(tiny, sizes):
    with pytest.raises(SchemeError, match="must be positive"):
        lowbit.evaluate(tiny.merged("bert"), toy_data(), **sizes)


def test_damaged_adapters_are_refused(tiny, tmp_path):
    damaged = shutil.copytree(tiny.adapter("bert"), tmp_path / "damaged")
    data = bytearray((damaged / "task_adapter.safetensors").read_bytes())
    data[-5] ^= 4
    (damaged / "task_adapter.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        lowbit.evaluate(tiny.backbone("bert"), toy_data(), adapter=damaged)
    edit_json(damaged / "task_adapter.json", lambda values: values.pop("primary"))
    with pytest.raises(AdapterError, match=r"task_adapter.json is damaged"):
        lowbit.evaluate(tiny.backbone("bert"), toy_data(), adapter=damaged)


def test_an_adapter_of_another_backbone_is_refused(tiny, tmp_path):
    with pytest.raises(AdapterError, match="was trained on the backbone"):
        lowbit.evaluate(tiny.backbone("bert", seed=1), toy_data(), adapter=tiny.adapter("bert"))
    info = dataclasses.replace(read_info(tiny.adapter("bert")), label_names=("a", "b", "c"))
    wrong = write_adapter(tmp_path / "wrong", info, {})
    with pytest.raises(CheckpointError, match="neither backbone nor adapter holds"):
        lowbit.evaluate(tiny.backbone("bert"), toy_data(), adapter=wrong)
