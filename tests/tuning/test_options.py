import dataclasses
import json
import math
from pathlib import Path

import pytest

from lowbit.errors import SchemeError
from lowbit.recipe import Recipe
from lowbit.tuning import TuneOptions, TuneResult


def test_defaults():
    options = TuneOptions()
    assert options.to_dict() == {
        "epochs": 3,
        "batch_size": 32,
        "accumulate": 1,
        "learning_rate": None,
        "head_learning_rate": None,
        "warmup": 0.06,
        "schedule": "linear",
        "dropout": None,
        "max_length": 128,
        "norms": True,
        "biases": True,
        "scales": None,
        "budget": None,
        "positions": "backbone",
        "initial": "stored",
        "rate_by_step": False,
        "rank": 8,
        "teacher": None,
        "float_model": None,
        "precision": "auto",
        "cache": "none",
        "checkpointing": False,
        "seed": 0,
        "hold_out": 0.0,
        "patience": None,
    }
    assert options.recipe == Recipe()
    assert options.save_steps == 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs, batch size and maximum length must be positive"),
        ({"epochs": -1}, "must be positive"),
        ({"epochs": math.nan}, "must be positive"),
        ({"epochs": math.inf}, "must be positive"),
        ({"batch_size": 0}, "must be positive"),
        ({"max_length": 0}, "must be positive"),
        ({"learning_rate": 0.0}, "learning rates must be positive"),
        ({"learning_rate": math.nan}, "learning rates must be positive"),
        ({"head_learning_rate": -1e-3}, "learning rates must be positive"),
        ({"head_learning_rate": math.inf}, "learning rates must be positive"),
        ({"accumulate": 0}, "cannot be accumulated in 0 parts"),
        ({"batch_size": 4, "accumulate": 5}, "a batch of 4 rows cannot be accumulated in 5 parts"),
        ({"save_steps": -1}, "cannot save after -1 steps; give a number of steps, or 0 for never"),
        ({"hold_out": 1.0}, "cannot hold out 1.0 of the training rows; give a part below 1"),
        ({"hold_out": -0.1}, "cannot hold out -0.1"),
        ({"hold_out": math.nan}, "cannot hold out nan"),
        ({"hold_out": 0.1, "patience": 0}, "patience counts evaluations, at least 1"),
        ({"patience": 2}, "on held-out rows; give a part to hold out, too"),
        ({"dropout": 1.0}, "dropout is a probability from 0 to below 1, not 1.0"),
        ({"dropout": -0.1}, "not -0.1"),
        ({"precision": "fp16"}, "unknown precision 'fp16'; use one of auto, fp32, bf16"),
        ({"seed": -1}, "seed -1 is outside 0 to"),
        ({"seed": 2**32}, "is outside 0 to"),
    ],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(SchemeError, match=message):
        TuneOptions(**change)


def test_limits_are_allowed():
    options = TuneOptions(epochs=0.01, batch_size=1, max_length=1, learning_rate=1e-9, seed=2**32 - 1, save_steps=0)
    TuneOptions(batch_size=4, accumulate=4, hold_out=0.99, patience=1)
    assert dataclasses.replace(options, seed=0).epochs == 0.01


def test_options_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TuneOptions().epochs = 5


def test_a_result_is_json_able():
    result = TuneResult(Path("out"), "full", "toy", "f1", 0.5, {"dev": {"f1": 0.5}}, {"all": 7}, 1.0, 2.5, 9, 4)
    values = json.loads(json.dumps(result.to_dict()))
    assert values == dataclasses.asdict(result) | {"path": "out"}


def test_the_record_holds_what_the_result_depends_on():
    """How often the state is saved is no part of it."""
    assert TuneOptions(save_steps=3).to_dict() == TuneOptions().to_dict()
