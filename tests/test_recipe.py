import json

import pytest

from lowbit.errors import SchemeError
from lowbit.recipe import Override, Recipe, embedding_scheme
from lowbit.scheme import OutlierRule, Scheme

NAMES = ["embeddings.word_embeddings", "layer.0.attention.query", "layer.0.output.dense", "layer.1.output.dense"]

YAML = """
scheme: w4
overrides:
  - match: "*.output.dense"
    scheme: {bits: 3, granularity: group, group_size: 64}
  - match: layer.0.*
    scheme: w8o0
skip: ["layer.1.*"]
embeddings: 4
"""
RECIPE = Recipe(
    scheme=Scheme(),
    overrides=(
        Override("*.output.dense", Scheme(bits=3, granularity="group", group_size=64)),
        Override("layer.0.*", Scheme(bits=8, outliers=None)),
    ),
    skip=("layer.1.*",),
    embeddings=Scheme(bits=4, outliers=None),
)


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_default_keeps_embeddings_in_8_bits_per_row_without_outliers():
    assert Recipe() == Recipe(Scheme(), (), (), Scheme(bits=8, strategy="minmax", outliers=None))


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ("float", None),
        (8, Scheme(bits=8, strategy="minmax", outliers=None)),
        ("4", Scheme(bits=4, strategy="mse", outliers=None)),
    ],
)
def test_embedding_scheme(bits, expected):
    assert embedding_scheme(bits) == expected
    assert Recipe.parse({"embeddings": bits}).embeddings == expected


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_embeddings_have_no_inputs_to_round(activations):
    message, rounding = "word embeddings have no inputs to round", {"bits": 8, "activations": activations}
    with pytest.raises(SchemeError, match=message):
        Recipe.parse({"embeddings": rounding})
    recipe = Recipe.parse({"overrides": [{"match": "*", "scheme": rounding}]})
    assert recipe.scheme_for(NAMES[1], "linear").activations == activations
    with pytest.raises(SchemeError, match=message):
        recipe.scheme_for(NAMES[0], "embedding")


@pytest.mark.parametrize("bits", [3, 16, "none", None, True, 8.0])
def test_embedding_scheme_refuses_other_widths(bits):
    with pytest.raises(SchemeError, match=f"8, 4 or float, not {bits!r}"):
        Recipe.parse({"embeddings": bits})


def test_first_override_wins_and_skip_wins_over_all():
    assert RECIPE.scheme_for("layer.0.output.dense", "linear").bits == 3
    assert RECIPE.scheme_for("layer.0.attention.query", "linear").bits == 8
    assert RECIPE.scheme_for("layer.1.output.dense", "linear") is None
    assert RECIPE.scheme_for("layer.2.attention.query", "linear") == Scheme()
    assert RECIPE.scheme_for("embeddings.word_embeddings", "embedding") == embedding_scheme(4)
    assert Recipe(embeddings=None).scheme_for("embeddings.word_embeddings", "embedding") is None


def test_patterns_are_case_sensitive_and_cover_the_whole_name():
    recipe = Recipe(skip=("output", "Layer.*"))
    assert recipe.scheme_for("layer.0.output", "linear") == Scheme()


def test_a_pattern_that_matches_nothing_is_named():
    RECIPE.check_patterns(NAMES)
    for recipe in (Recipe(skip=("layer.9.*",)), Recipe(overrides=(Override("layer.9.*", Scheme()),))):
        with pytest.raises(SchemeError, match=r"'layer\.9\.\*' matches no .* 'embeddings.word_embeddings'"):
            recipe.check_patterns(NAMES)


def test_short_form_scheme_and_recipe_pass():
    assert Recipe.parse("w3g64") == Recipe(scheme=Scheme.parse("w3g64"))
    assert Recipe.parse(Scheme(bits=8)) == Recipe(scheme=Scheme(bits=8))
    assert Recipe.parse(RECIPE) is RECIPE


@pytest.mark.parametrize("name", ["r.yaml", "r.yml"])
def test_yaml_file(file, name):
    path = file(name, YAML)
    assert Recipe.parse(path) == RECIPE
    assert Recipe.parse(str(path)) == RECIPE


@pytest.mark.parametrize("indent", [None, 2, "\t"], ids=["compact", "spaces", "tabs"])
def test_json_file_of_a_recipe_reads_back(file, indent):
    recipe = Recipe(scheme=Scheme(outliers=OutlierRule(share=1e-5)), overrides=RECIPE.overrides, embeddings=None)
    assert Recipe.parse(file("r.json", json.dumps(recipe.to_dict(), indent=indent))) == recipe
    assert Recipe.parse(json.loads(json.dumps(RECIPE.to_dict()))) == RECIPE


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schemes": "w4"}, "unknown recipe key 'schemes'; known keys: scheme, overrides, skip, embeddings"),
        ({"scheme": {"bit": 4}}, "unknown scheme key 'bit'"),
        ({"scheme": 4}, "cannot read the scheme 4"),
        ({"scheme": None}, "cannot read the scheme None"),
        ({"overrides": [{"match": "*"}]}, "exactly a pattern `match` and a `scheme`"),
        ({"overrides": [{"match": "*", "scheme": "w4", "bits": 3}]}, "exactly a pattern"),
        ({"overrides": [{"match": 3, "scheme": "w4"}]}, "exactly a pattern"),
        ({"overrides": ["w4"]}, "exactly a pattern"),
        ({"overrides": None}, "`overrides` must be a list, not None"),
        ({"overrides": {"match": "*", "scheme": "w4"}}, "`overrides` must be a list"),
        ({"skip": "*.attention.*"}, r"`skip` must be a list, not '\*.attention.\*'"),
        ({"skip": [3]}, "`skip` lists patterns of module names, not 3"),
        ({"embeddings": {"bit": 8}}, "unknown scheme key 'bit'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_recipes_say_what_is_wrong(values, message):
    with pytest.raises(SchemeError, match=message):
        Recipe.parse(values)


def test_embeddings_may_have_any_scheme():
    assert Recipe.parse({"embeddings": {"bits": 6, "outliers": None}}).embeddings == Scheme(bits=6, outliers=None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.yaml", "scheme: [w4", "not valid YAML or JSON"),
        ("r.json", "{'scheme': 1}", "not valid YAML or JSON"),
        ("r.yml", b"scheme: \xff", "not valid YAML or JSON"),
        ("r.yaml", "- w4", "must hold a mapping, not list"),
        ("r.yaml", "", "must hold a mapping, not NoneType"),
    ],
)
def test_broken_files_are_named(file, name, content, message):
    path = file(name, content)
    with pytest.raises(SchemeError, match=message) as caught:
        Recipe.parse(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(SchemeError, match=r"none\.yaml does not exist"):
        Recipe.parse(tmp_path / "none.yaml")


@pytest.mark.parametrize("bits", ["3.2", 0, -1, True, float("nan")])
def test_target_bits_are_a_number(bits):
    with pytest.raises(SchemeError, match="`target_bits` is a number of bits per weight"):
        Recipe.parse({"target_bits": bits})


def test_target_bits_choose_for_the_default_scheme_only():
    recipe = Recipe.parse({"target_bits": 3.2, "overrides": [{"match": "a.*", "scheme": "w4"}]})
    assert Recipe.parse(recipe.to_dict()) == recipe
    assert recipe.chooses_bits("b.c", "linear")
    assert not recipe.chooses_bits("a.c", "linear")
    assert not recipe.chooses_bits("b.c", "embedding")
    assert not Recipe().chooses_bits("b.c", "linear")
