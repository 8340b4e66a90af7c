import json

import pytest
import typer

from lowbit.cli import options
from lowbit.errors import DataError, SchemeError
from lowbit.recipe import Recipe
from lowbit.scheme import Scheme


def test_the_default_recipe_is_w4():
    assert options.make_recipe(None) == Recipe.parse("w4")


def test_single_options():
    made = options.make_recipe(None, "w2o0", "float", "minmax", "full")
    assert made == Recipe(scheme=Scheme(bits=2, levels="full", strategy="minmax", outliers=None), embeddings=None)


def test_levels_of_the_bits_stay_when_none_are_given():
    assert options.make_recipe(None, "w2").scheme.levels == "midrise"


def test_kmeans_brings_its_levels():
    assert options.make_recipe(None, "w3", None, "kmeans").scheme == Scheme(bits=3, strategy="kmeans")
    shared = options.make_recipe(None, "w3", None, "kmeans", "shared-codebook").scheme
    assert shared == Scheme(bits=3, strategy="kmeans", levels="shared-codebook")


def test_a_recipe_file(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"scheme": "w3", "skip": ["*.query"]}))
    assert options.make_recipe(path) == Recipe.parse(path)


@pytest.mark.parametrize("given", [{"scheme": "w4"}, {"strategy": "mse"}, {"levels": "full"}, {"embeddings": "8"}])
def test_a_recipe_file_excludes_single_options(tmp_path, given):
    with pytest.raises(typer.BadParameter, match=f"--{next(iter(given))} goes into the recipe file"):
        options.make_recipe(tmp_path / "recipe.yaml", **given)


def test_a_recipe_file_is_no_scheme(tmp_path):
    with pytest.raises(typer.BadParameter, match=r"ends in .yaml, .yml or .json, not w4"):
        options.make_recipe(tmp_path / "w4")
    with pytest.raises(SchemeError, match="does not exist"):
        options.make_recipe(tmp_path / "none.yaml")


def columns(text="t", label="l", text_pair=None):
    return {"text": text, "text_pair": text_pair, "label": label}


def test_training_rows_are_drawn_from_a_table_too(reviews):
    data = options.training_data(None, None, (reviews, reviews), columns(), regression=False, train_rows=5, seed=1)
    assert (len(data.train), len(data.evaluations["eval"])) == (5, 16)
    assert data.train == data.evaluations["eval"].sample(5, 1)


@pytest.mark.parametrize(
    ("task", "data_dir", "files", "named", "message"),
    [
        (None, None, (None, None), columns(None, None), "give --task, or your own files with --train, --eval, --text"),
        (None, None, ("a.csv", None), columns(), "give --task, or your own files"),
        (None, None, ("a.csv", "b.csv"), columns(label=None), "give --task, or your own files"),
        (None, "data", ("a.csv", "b.csv"), columns(), "--data-dir is for --task"),
        ("sst2", None, ("a.csv", None), columns(None, None), "--train is for your own files"),
        ("sst2", None, (None, None), columns(None, None, "p"), "--text-pair is for your own files"),
    ],
)
def test_task_and_own_files_exclude_each_other(task, data_dir, files, named, message):
    with pytest.raises(typer.BadParameter, match=message):
        options.training_data(task, data_dir, files, named, regression=False, train_rows=None, seed=0)


def test_regression_is_not_for_a_task():
    with pytest.raises(typer.BadParameter, match="--regression is for your own files"):
        options.training_data("stsb", None, (None, None), columns(None, None), regression=True, train_rows=None, seed=0)


def test_labels_of_an_evaluation_file_are_those_of_the_model(tmp_path, bert, reviews):
    folder = tmp_path / "classifier"
    folder.mkdir()
    values = json.loads((bert / "config.json").read_text())
    values |= {"id2label": {"0": "yes", "1": "no"}, "label2id": {"yes": 0, "no": 1}}
    (folder / "config.json").write_text(json.dumps(values))
    data = options.evaluation_data(str(folder), None, None, None, reviews, columns())
    assert data.label_names == ("yes", "no")
    assert data.evaluations["eval"].labels[:2] == [0, 1]


def test_a_label_that_the_model_does_not_know_is_named(bert, reviews):
    with pytest.raises(DataError, match="label 'yes' is not one of LABEL_0, LABEL_1"):
        options.evaluation_data(str(bert), None, None, None, reviews, columns())


def test_a_model_with_one_output_is_regression(tmp_path, bert):
    folder = tmp_path / "regressor"
    folder.mkdir()
    values = json.loads((bert / "config.json").read_text()) | {"id2label": {"0": "LABEL_0"}}
    (folder / "config.json").write_text(json.dumps(values))
    rows = tmp_path / "rows.csv"
    rows.write_text("t,l\na film,1.5\n")
    data = options.evaluation_data(str(folder), None, None, None, rows, columns())
    assert (data.label_names, data.evaluations["eval"].labels) == (None, [1.5])
