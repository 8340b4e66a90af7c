"""A run that is killed and started again gives the bytes of a run that is left alone."""

import dataclasses
import json
import shutil

import pytest
from safetensors.torch import load_file

import lowbit
from lowbit.errors import CheckpointError
from lowbit.recipe import Recipe
from tests.apart import tune_apart
from tests.models import file_bytes
from tests.tiny import options, toy_data

DATA = dataclasses.replace(toy_data(), evaluations={})
# Six steps of two parts each, evaluations after the third and the sixth; the tiny models have dropout.
RUN = options(epochs=2, accumulate=2, hold_out=0.25, patience=2, save_steps=1, learning_rate=0.05)
STEP_END = "lowbit.tuning.trainer:_BetweenSteps.on_step_end"


def start(tiny, method):
    return tiny.backbone("bert") if method == "outliers" else tiny.model("bert")


def saved_step(folder):
    """The step after which the state was saved last."""
    record = load_file(folder / ".out.checkpoint")["record"].numpy().tobytes()
    return json.loads(record)["counters"]["step"]


def left_alone(folder, *arguments, **settings):
    """Result and bytes of a run that nobody kills; nothing stays in the folder."""
    (result,) = tune_apart(arguments[0], folder / "out", *arguments[1:], **settings)
    files = file_bytes(folder / "out")
    shutil.rmtree(folder / "out")
    return result, files


def test_a_run_can_be_killed_at_any_moment(tiny, tmp_path):
    """One run in nine lives: where each ends, and the last step saved by then."""
    expected, files = left_alone(tmp_path, tiny.backbone("bert"), DATA, options=RUN)
    lives = [
        (("lowbit.loop.saved:SavedRun.save", 1), None),  # before anything is saved
        ((STEP_END, 2), 1),  # after the first step
        (("lowbit.tuning.trainer:set_seed", 4), 2),  # between two parts of a batch
        (("accelerate.utils:reduce", 1), 2),  # in an evaluation
        (("lowbit.loop.saved:TensorWriter.write", 50), 2),  # in a save
        ((STEP_END, 3), 4),  # after an evaluation
        ((STEP_END, 2), 5),  # before the last step is complete
        (("lowbit.tuning.methods.sparse:write_adapter", 1), 6),  # after the last step
    ]
    run = tiny.backbone("bert"), tmp_path / "out", DATA
    for kill, step in lives:
        assert tune_apart(*run, options=RUN, kill=kill) == [None]
        assert not (tmp_path / "out").exists()
        assert (saved_step(tmp_path) if (tmp_path / ".out.checkpoint").exists() else None) == step
    (result,) = tune_apart(*run, options=RUN)
    assert (expected["reported"], result["reported"]) == ([(step, 6) for step in range(1, 7)], [])
    assert (result["trained"], result["steps"]) == (expected["trained"], expected["steps"])
    assert file_bytes(tmp_path / "out") == files
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("method", ["full", "ptq", "qat"])
def test_the_other_methods_go_on_too(tiny, tmp_path, method):
    chosen = options(epochs=2, save_steps=2, recipe=Recipe.parse("w3o1"))
    run = {"method": method, "options": chosen}
    _, files = left_alone(tmp_path, tiny.model("bert"), DATA, **run)
    assert tune_apart(tiny.model("bert"), tmp_path / "out", DATA, **run, kill=(STEP_END, 4)) == [None]
    assert saved_step(tmp_path) == 2
    (result,) = tune_apart(tiny.model("bert"), tmp_path / "out", DATA, **run)
    assert result["reported"] == [(step, 6) for step in range(3, 7)]
    assert file_bytes(tmp_path / "out") == files


def interrupted(model, output, data=DATA, chosen=RUN, method="outliers", step=2):
    """Stop a run with Ctrl-C after a step."""

    def progress(done, total, what):
        if done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lowbit.tune(model, output, data, method=method, options=chosen, progress=progress)


def test_ctrl_c_keeps_what_was_saved(tiny, tmp_path):
    calls = []
    interrupted(tiny.backbone("bert"), tmp_path / "deep" / "out")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [".out.checkpoint"]
    lowbit.tune(
        tiny.backbone("bert"), tmp_path / "deep" / "out", DATA, options=RUN, progress=lambda *call: calls.append(call)
    )
    assert calls == [(step, 6, "steps") for step in range(3, 7)]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_early_stopping_holds_after_a_resume(tiny, tmp_path):
    """A run that has stopped for lack of progress, and is killed before it writes, does not go on."""
    chosen = dataclasses.replace(RUN, epochs=5, patience=1, learning_rate=1.0, head_learning_rate=1.0)
    run = {"options": chosen, "kill": ("lowbit.tuning.methods.sparse:write_adapter", 1)}
    assert tune_apart(tiny.backbone("bert"), tmp_path / "out", DATA, **run) == [None]
    step = saved_step(tmp_path)
    assert 6 <= step < 15
    result = lowbit.tune(
        tiny.backbone("bert"), tmp_path / "out", DATA, options=chosen, progress=lambda *_: pytest.fail("a step")
    )
    assert result.steps == step - 3  # the evaluation before the last one was better


def other_rows(data):
    return dataclasses.replace(data, train=data.train.select(range(23)))


OTHER = {
    "options": (
        {"chosen": dataclasses.replace(RUN, epochs=3, precision="auto")},
        r"\(epochs was 2, now 3, precision was fp32, now auto\)",
    ),
    "seed": ({"chosen": dataclasses.replace(RUN, seed=1)}, r"\(seed was 0, now 1, other rows, other model\)"),
    "recipe": (
        {"chosen": dataclasses.replace(RUN, recipe=Recipe.parse("w2"))},
        "recipe was .*'bits': 4.* now .*'bits': 2",
    ),
    "rows": ({"data": other_rows(DATA)}, r"\(other rows\)"),
    "labels": (
        {"data": dataclasses.replace(DATA, train=dataclasses.replace(DATA.train, labels=DATA.train.labels[::-1]))},
        r"\(other rows\)",
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_the_checkpoint_of_another_run_is_refused(tiny, tmp_path, name):
    changes, message = OTHER[name]
    run = {"chosen": RUN, "data": DATA} | changes
    interrupted(tiny.backbone("bert"), tmp_path / "out")
    before = file_bytes(tmp_path)
    with pytest.raises(CheckpointError, match=message) as raised:
        lowbit.tune(tiny.backbone("bert"), tmp_path / "out", run["data"], options=run["chosen"])
    assert f"{tmp_path / '.out.checkpoint'} is the checkpoint of another run" in str(raised.value)
    assert "to go on with it repeat its command, to start over remove the file" in str(raised.value)
    assert file_bytes(tmp_path) == before


def test_the_checkpoint_of_another_model_is_refused(tiny, tmp_path):
    interrupted(tiny.backbone("bert"), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"\(other model\)"):
        lowbit.tune(tiny.backbone("bert", seed=1), tmp_path / "out", DATA, options=RUN)
    with pytest.raises(
        CheckpointError, match=r"\(method was outliers, now full, dropout was 0\.0, now None, other model\)"
    ):
        lowbit.tune(tiny.model("bert"), tmp_path / "out", DATA, method="full", options=RUN)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_a_damaged_checkpoint_is_refused(tiny, tmp_path, damage):
    interrupted(tiny.backbone("bert"), tmp_path / "out")
    file = tmp_path / ".out.checkpoint"
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes({"flipped": content, "truncated": content[:-9], "empty": b""}[damage])
    with pytest.raises(CheckpointError, match=r"\.out\.checkpoint: .*, or remove it to start over"):
        lowbit.tune(tiny.backbone("bert"), tmp_path / "out", DATA, options=RUN)


def test_how_often_the_state_is_saved_may_change(tiny, tmp_path):
    interrupted(tiny.backbone("bert"), tmp_path / "out")
    interrupted(tiny.backbone("bert"), tmp_path / "out", chosen=dataclasses.replace(RUN, save_steps=0), step=5)
    assert saved_step(tmp_path) == 2
    interrupted(tiny.backbone("bert"), tmp_path / "out", chosen=dataclasses.replace(RUN, save_steps=4), step=5)
    assert saved_step(tmp_path) == 4


def test_short_runs_write_nothing(tiny, tmp_path):
    interrupted(tiny.backbone("bert"), tmp_path / "out", chosen=options(epochs=2), step=6)
    assert list(tmp_path.iterdir()) == []
