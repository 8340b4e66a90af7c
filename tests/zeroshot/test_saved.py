"""A zero-shot run that is killed and started again gives the bytes of a run that is left alone."""

import dataclasses
import json
import shutil

import pytest
from safetensors.torch import load_file

import lowbit
from lowbit.errors import CheckpointError
from tests.apart import zeroshot_apart
from tests.models import file_bytes
from tests.zeroshot.runs import chosen, taken

RUN = chosen(steps=4, evaluate_steps=2, save_steps=1, ratio=2)
STEP = "lowbit.zeroshot.train:_Game.step"


def saved_step(folder):
    """The step after which the state was saved last."""
    record = load_file(folder / ".out.checkpoint")["record"].numpy().tobytes()
    return json.loads(record)["counters"]["student"]["step"]


def facts(result):
    """What two results of the same run have in common."""
    return {name: value for name, value in result.items() if name not in ("seconds", "reported")}


def left_alone(tmp_path, *arguments, **settings):
    """Result and bytes of a run that nobody kills; nothing stays in the folder."""
    (result,) = zeroshot_apart(arguments[0], tmp_path / "out", *arguments[1:], **settings)
    files = file_bytes(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    return result, files


def test_a_run_can_be_killed_at_any_moment(tiny, tmp_path):
    """One run in five lives: where each ends, and the last step saved by then."""
    model, settings = tiny.model("bert", "BertForSequenceClassification"), {"options": RUN}
    expected, files = left_alone(tmp_path, model, "w2a8o1", **settings)
    lives = [
        ((STEP, 2), 1),  # after the first step
        (("lowbit.loop.saved:TensorWriter.write", 50), 1),  # in a save
        (("lowbit.zeroshot.objective:Yardstick.__call__", 1), 1),  # in a measurement, after the generator has moved
        (("lowbit.loop.saved:SavedRun.save", 2), 2),  # before another step is saved
        (("lowbit.zeroshot.run:save", 1), 4),  # after the last step
    ]
    for kill, step in lives:
        assert zeroshot_apart(model, tmp_path / "out", "w2a8o1", **settings, kill=kill) == [None]
        assert not (tmp_path / "out").exists()
        assert (saved_step(tmp_path) if (tmp_path / ".out.checkpoint").exists() else None) == step
    (result,) = zeroshot_apart(model, tmp_path / "out", "w2a8o1", **settings)
    assert facts(result) == facts(expected)
    assert file_bytes(tmp_path / "out") == files
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("method", "recipe"), [("sampled", "w2a8"), ("zeroquant", "w2a8"), ("zsaq", "w2a8s")])
def test_other_methods_and_static_activations_go_on_too(tiny, tmp_path, method, recipe):
    model, settings = tiny.model("opt"), {"method": method, "options": taken(method, save_steps=1)}
    expected, files = left_alone(tmp_path, model, recipe, **settings)
    assert zeroshot_apart(model, tmp_path / "out", recipe, **settings, kill=(STEP, 3)) == [None]
    assert saved_step(tmp_path) == 2
    (result,) = zeroshot_apart(model, tmp_path / "out", recipe, **settings)
    assert result["reported"] == [(3, 4), (4, 4)]
    assert facts(result) == facts(expected)
    assert file_bytes(tmp_path / "out") == files


def interrupted(model, output, options=RUN, method="zsaq", step=2):
    """Stop a run with Ctrl-C after a step."""

    def progress(done, total, what):
        if done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lowbit.zeroshot(model, output, "w2a8", method=method, options=options, progress=progress)


def test_ctrl_c_keeps_what_was_saved(tiny, tmp_path):
    calls = []
    interrupted(tiny.model("bert"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [".out.checkpoint"]
    lowbit.zeroshot(
        tiny.model("bert"), tmp_path / "out", "w2a8", options=RUN, progress=lambda *call: calls.append(call[:2])
    )
    assert calls == [(3, 4), (4, 4)]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_checkpoint_of_another_run_is_refused(tiny, tmp_path):
    interrupted(tiny.model("bert"), tmp_path / "out")
    before = file_bytes(tmp_path)
    others = [
        ({"options": dataclasses.replace(RUN, rho=0.1)}, r"\(rho was 0.001, now 0.1\)"),
        ({"options": RUN, "method": "no-sam"}, r"\(method was zsaq, now no-sam\)"),
        ({"options": dataclasses.replace(RUN, generator=tiny.model("opt"))}, r"\(generator was None.*other source\)"),
    ]
    for settings, message in others:
        with pytest.raises(CheckpointError, match=message):
            lowbit.zeroshot(tiny.model("bert"), tmp_path / "out", "w2a8", **settings)
    with pytest.raises(CheckpointError, match=r"other model"):
        lowbit.zeroshot(tiny.model("bert", seed=1), tmp_path / "out", "w2a8", options=RUN)
    assert file_bytes(tmp_path) == before
