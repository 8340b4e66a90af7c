import dataclasses
import json
from pathlib import Path

import pytest

from lowbit import ZeroShotOptions
from lowbit.errors import SchemeError
from lowbit.recipe import Recipe
from lowbit.scheme import OutlierRule, Scheme
from lowbit.zeroshot import Ball, ZeroShotResult, parse_recipe

BAD = [
    ({"steps": 0}, "must be at least 1"),
    ({"ratio": 0}, "must be at least 1"),
    ({"lengths": (5, 4)}, "fewest and the most tokens"),
    ({"lengths": (0, 4)}, "fewest and the most tokens"),
    ({"pairs": 1.5}, "from 0 to 1, not 1.5"),
    ({"learning_rate": 0.0}, "learning_rate must be positive"),
    ({"generator_rate": float("inf")}, "generator_rate must be positive"),
    ({"temperature": -1.0}, "temperature must be positive"),
    ({"hidden": -1.0}, "hidden is a weight in the loss"),
    ({"diversity": float("nan")}, "diversity is a weight in the loss"),
    ({"warmup": 1.0}, "cannot warm up for 1.0 of the steps"),
    ({"candidates": 0}, "at least 1 candidate"),
    ({"patience": 0}, "patience counts evaluations"),
    ({"save_steps": -1}, "cannot save after -1 steps"),
    ({"seed": -1}, "seed -1 is outside"),
    ({"rho": -0.1}, "rho -0.1 is no radius"),
    ({"perturb": "bias"}, "unknown perturb 'bias'; use one of weight, latent"),
    ({"schedule": "step"}, "unknown schedule 'step'"),
    ({"precision": "fp16"}, "unknown precision 'fp16'"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_bad_values_are_refused(values, message):
    with pytest.raises(SchemeError, match=message):
        ZeroShotOptions(**values)


def test_the_ball_is_made_of_four_options():
    options = ZeroShotOptions(rho=0.2, relative=True, adaptive=True, per_tensor=True)
    assert options.ball() == Ball(0.2, per_tensor=True, adaptive=True, relative=True)


def test_options_can_be_written_as_json():
    """All but how often the state is saved, which changes nothing in the result."""
    values = json.loads(json.dumps(ZeroShotOptions(generator=Path("here")).to_dict()))
    assert values["generator"] == "here"
    assert set(values) == {field.name for field in dataclasses.fields(ZeroShotOptions)} - {"save_steps"}
    assert ZeroShotOptions(**values | {"generator": None}) == ZeroShotOptions()


def test_results_can_be_written_as_json():
    record = ({"step": 1, "loss": 0.5, "sharpness": 0.0}, {"step": 2, "loss": 0.25, "sharpness": 0.0, "gap": 0.1})
    result = ZeroShotResult(Path("out"), "zsaq", "w2a8o0", 0.3, 0.1, 2, 1.5, {"descents": 2}, record)
    values = json.loads(json.dumps(result.to_dict()))
    assert (values["start_loss"], values["end_loss"], values["path"]) == (0.5, 0.25, "out")
    untrained = ZeroShotResult(Path("out"), "rtn", "w2a8o0", 0.3, 0.3, 0, 0.0)
    assert (untrained.start_loss, untrained.end_loss) == (None, None)


def test_a_short_form_has_no_outliers_unless_it_says_so():
    assert parse_recipe("w2a8").scheme == dataclasses.replace(Scheme.parse("w2a8"), outliers=None)
    assert parse_recipe("w2a8o1").scheme.outliers == OutlierRule(share=0.01)
    whole = Recipe.parse({"scheme": {"bits": 3}})
    assert parse_recipe(whole) == whole
    assert parse_recipe({"scheme": {"bits": 3}}) == whole
