import dataclasses

import pytest

from lowbit.data import TaskData, glue_data, intent_data, table_data
from lowbit.errors import DataError
from tests.tiny import toy_data, toy_rows


@pytest.fixture
def glue(tmp_path):
    """A folder with tiny SST-2, STS-B and MNLI files."""
    rows = "\n".join(f"text {index}\t{index % 2}" for index in range(10))
    write(tmp_path / "SST-2/train.tsv", f"sentence\tlabel\n{rows}\n")
    write(tmp_path / "SST-2/dev.tsv", "sentence\tlabel\nfine\t1\nbad\t0\n")
    for split in ("train", "dev"):
        write(tmp_path / f"STS-B/{split}.tsv", "sentence1\tsentence2\tscore\na\tb\t4.5\nc\td\t0\n")
    for split in ("train", "dev_matched", "dev_mismatched"):
        write(tmp_path / f"MNLI/{split}.tsv", f"sentence1\tsentence2\tgold_label\n{split}\tb\tneutral\n")
    return tmp_path


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_glue_data(glue):
    data = glue_data("SST-2", glue)
    assert (data.name, data.metrics, data.primary, data.outputs) == ("sst2", ("accuracy",), "accuracy", 2)
    assert data.label_names == ("negative", "positive")
    assert data.training_rows().texts == [f"text {index}" for index in range(10)]
    assert {split: rows.labels for split, rows in data.evaluations.items()} == {"dev": [1, 0]}


def test_glue_train_rows_are_the_first_of_a_permutation(glue):
    few, more = (glue_data("sst2", glue, train_rows=rows, seed=3).train for rows in (4, 8))
    other = glue_data("sst2", glue, train_rows=4, seed=4).train
    assert few.texts == more.texts[:4]
    assert few.texts != other.texts
    assert len(set(more.texts)) == 8
    for text, label in zip(more.texts, more.labels, strict=True):
        assert int(text.split()[1]) % 2 == label


def test_glue_without_training_rows_does_not_read_them(glue):
    (glue / "SST-2/train.tsv").unlink()
    data = glue_data("sst2", glue, train=False, train_rows=3)
    assert data.train is None
    with pytest.raises(DataError, match="task 'sst2' has no training rows; give a training file"):
        data.training_rows()
    with pytest.raises(DataError, match="sst2: no train file"):
        glue_data("sst2", glue)


def test_glue_regression_has_one_output(glue):
    data = glue_data("stsb", glue)
    assert (data.outputs, data.label_names, data.primary) == (1, None, "spearman")
    assert data.train.pairs == ["b", "d"]


def test_glue_mnli_has_two_evaluation_sets(glue):
    data = glue_data("mnli", glue)
    assert {split: rows.texts for split, rows in data.evaluations.items()} == {
        "dev_matched": ["dev_matched"],
        "dev_mismatched": ["dev_mismatched"],
    }
    assert data.outputs == 3


def test_the_training_file_decides_the_labels(tmp_path):
    train = write(tmp_path / "reviews.csv", "t,l\nx,yes\ny,no\nz,maybe\n")
    evaluation = write(tmp_path / "dev.tsv", "l\tt\nyes\tu\nno\tv\n")
    data = table_data(train, evaluation, text="t", label="l")
    assert (data.name, data.metrics, data.primary) == ("reviews", ("accuracy",), "accuracy")
    assert data.label_names == ("maybe", "no", "yes")
    assert data.train.labels == [2, 1, 0]
    assert data.evaluations["eval"].labels == [2, 1]
    assert data.evaluations["eval"].texts == ["u", "v"]


def test_a_label_outside_the_set_is_named_by_file_and_line(tmp_path):
    train = write(tmp_path / "train.csv", "t,l\nx,yes\ny,no\n")
    evaluation = write(tmp_path / "dev.csv", "t,l\nx,yes\ny,perhaps\n")
    with pytest.raises(DataError) as caught:
        table_data(train, evaluation, text="t", label="l")
    assert str(caught.value) == f"{evaluation}:3: label 'perhaps' is not one of no, yes; correct this row"


def test_given_label_names_hold_for_both_files(tmp_path):
    train = write(tmp_path / "train.csv", "t,l\nx,b\n")
    data = table_data(train, train, text="t", label="l", label_names=("c", "b", "a"))
    assert data.label_names == ("c", "b", "a")
    assert data.train.labels == data.evaluations["eval"].labels == [1]
    with pytest.raises(DataError, match=r"train.csv:2: label 'b' is not one of x, y"):
        table_data(train, text="t", label="l", label_names=("x", "y"))


def test_one_file_alone(tmp_path):
    path = write(tmp_path / "rows.jsonl", '{"t": "x", "p": "q", "l": 3}\n{"t": "y", "p": "r", "l": 1}\n')
    train = table_data(path, text="t", text_pair="p", label="l")
    assert (train.evaluations, train.train.pairs, train.label_names) == ({}, ["q", "r"], ("1", "3"))
    evaluation = table_data(None, path, text="t", label="l")
    assert (evaluation.train, evaluation.name, evaluation.label_names) == (None, "rows", ("1", "3"))
    assert evaluation.evaluations["eval"].labels == [1, 0]


def test_no_file_at_all():
    with pytest.raises(DataError, match="give a training file, an evaluation file, or both"):
        table_data(text="t", label="l")


def test_table_regression(tmp_path):
    path = write(tmp_path / "rows.csv", "t,l\nx,0.5\ny,-2\n")
    data = table_data(path, path, text="t", label="l", regression=True)
    assert (data.label_names, data.outputs, data.metrics) == (None, 1, ("pearson", "spearman"))
    assert data.primary == "spearman"
    assert data.train.labels == data.evaluations["eval"].labels == [0.5, -2.0]


def test_intents():
    data = intent_data()
    assert (data.name, data.outputs, len(data.train), len(data.evaluations["test"])) == ("intents", 12, 540, 180)
    few = intent_data(train_rows=20, seed=1)
    assert len(few.train) == 20
    assert few.train.texts != intent_data(train_rows=20, seed=2).train.texts
    assert few.label_names == data.label_names


def test_no_training_rows_is_an_error():
    rows = toy_rows()
    for train in (None, rows.select([])):
        with pytest.raises(DataError, match="has no training rows"):
            dataclasses.replace(toy_data(), train=train).training_rows()


def test_sets_must_have_labels_of_the_task():
    for change in ({"train": None, "evaluations": {}}, {"train": toy_rows()}):
        dataclasses.replace(toy_data(), **change)
    bare = dataclasses.replace(toy_rows(), labels=None)
    for change in ({"train": bare}, {"evaluations": {"dev": bare}}):
        with pytest.raises(DataError, match="toy: no labels; name the label column"):
            dataclasses.replace(toy_data(), **change)
    other = toy_rows(("yes", "no"))
    with pytest.raises(DataError, match=r"toy: the labels are \('yes', 'no'\), those of task 'toy' \('no', 'yes'\)"):
        dataclasses.replace(toy_data(), evaluations={"dev": other})
    with pytest.raises(DataError, match="those of task 'scores' None"):
        TaskData("scores", ("pearson",), "pearson", None, toy_rows())
