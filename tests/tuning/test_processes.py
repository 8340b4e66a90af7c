"""Several processes, or several parts, against one process that sees the same batches at once."""

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import lowbit
from lowbit.adapter import read_adapter
from lowbit.data import table_data
from lowbit.errors import SchemeError
from lowbit.loop import is_first, once
from lowbit.tuning import trainer
from tests.apart import free_port, tune_apart
from tests.models import file_bytes, save_tiny, tiny_tokenizer
from tests.tiny import options, toy_data


def rows_23(labels=("no", "yes")):
    """Rows of which, in batches of 6, the last batch of an epoch has 5, so that its parts are not alike."""
    data = toy_data(labels)
    return dataclasses.replace(data, train=data.train.select(range(23)), evaluations={})


RUN = {"epochs": 3, "batch_size": 6}
TOLERANCE = 2e-6  # of float32 values; outlier values are rounded to 16 bits when they are stored


def assert_alike(one, other):
    """Trained tensors agree to rounding.

    A bias of the keys is left out: it shifts all scores of a query alike and has no effect, so that its gradient is
    nothing but rounding error, of which AdamW makes steps of any size.
    """
    (_, first), (_, second) = read_adapter(one), read_adapter(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        if not name.endswith("key.bias"):
            relative = 2**-10 if value.dtype == torch.float16 else 0
            torch.testing.assert_close(second[name], value, atol=TOLERANCE, rtol=relative, msg=name)


@pytest.fixture(scope="module")
def without_dropout(tmp_path_factory):
    """A backbone whose configuration switches dropout off."""
    folder = tmp_path_factory.mktemp("without-dropout")
    changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    save_tiny(folder / "float", "bert", "BertModel", **changes)
    tiny_tokenizer("bert").save_pretrained(folder / "float")
    return lowbit.quantize(folder / "float", "w4o2", output=folder / "backbone").path


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize(("parts", "labels"), [(4, ("no", "yes")), (6, None)])
def test_parts_add_up_to_the_batch(tmp_path, without_dropout, parts, labels, taught):
    """Of unequal size with four parts; one of them empty, in the last batch, with six. With a teacher and without."""
    data, run = rows_23(labels), RUN
    if taught:
        float_model = without_dropout.parent / "float"
        teacher = lowbit.tune(float_model, tmp_path / "teacher", data, method="full", options=options(epochs=1)).path
        run = RUN | {"teacher": teacher}
    lowbit.tune(without_dropout, tmp_path / "whole", data, options=options(**run))
    lowbit.tune(without_dropout, tmp_path / "parts", data, options=options(**run, accumulate=parts))
    assert_alike(tmp_path / "whole", tmp_path / "parts")


def test_two_processes_are_killed_and_go_on(tiny, tmp_path):
    """With dropout, evaluations and an odd batch; the bytes are those of one process that accumulates two parts."""
    run = options(**RUN, hold_out=0.2, save_steps=2)
    arguments = tiny.backbone("bert"), tmp_path / "out", rows_23()
    killed = tune_apart(
        *arguments, options=run, processes=2, kill=("lowbit.tuning.trainer:_BetweenSteps.on_step_end", 5)
    )
    assert killed == [None, None]
    assert [path.name for path in tmp_path.iterdir()] == [".out.checkpoint"]
    result, _ = tune_apart(*arguments, options=run, processes=2)
    assert result["reported"] == [(step, 9) for step in range(5, 10)]
    tune_apart(arguments[0], tmp_path / "one", rows_23(), options=dataclasses.replace(run, accumulate=2))
    files, expected = file_bytes(tmp_path / "out"), file_bytes(tmp_path / "one")
    assert files.pop("task_adapter.json") != expected.pop("task_adapter.json")  # it records how many parts
    assert files == expected


def test_a_batch_must_have_a_row_for_each_process(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "processes", lambda: SimpleNamespace(num_processes=3, is_main_process=True))
    message = "a batch of 8 rows cannot be shared by 3 processes in 3 parts each; raise the batch size"
    with pytest.raises(SchemeError, match=message):
        lowbit.tune(tiny.backbone("bert"), tmp_path / "out", rows_23(), options=options(accumulate=3))


def test_a_process_alone_is_the_first():
    assert is_first()
    assert once(lambda: {"score": 0.5}) == {"score": 0.5}


def test_two_processes_under_a_launcher_do_what_one_does(tmp_path, without_dropout):
    """The whole command; two processes write, score and print what one does on the same batches."""
    train = rows_23().train
    rows = [f"{text},{train.label_names[label]}" for text, label in zip(train.texts, train.labels, strict=True)]
    file = tmp_path / "rows.csv"
    file.write_text("\n".join(["text,label", *rows]) + "\n")
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--num_machines", 1]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port(), "-m", "lowbit"]
    tune = ["tune", without_dropout, "-o", tmp_path / "two", "--train", file, "--eval", file, "--text", "text"]
    tune += ["--label", "label", "--json", "--max-length", 16, "--precision", "fp32"]
    tune += [f"--{name.replace('_', '-')}={value}" for name, value in RUN.items()]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, [*launch, *tune])],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    data = table_data(file, file, text="text", label="label")
    (one,) = tune_apart(without_dropout, tmp_path / "one", data, options=options(**RUN))
    two = json.loads(done.stdout)
    for name in ("metrics", "score", "trained", "trained_share", "rows", "steps"):
        assert two[name] == one[name]
    assert_alike(tmp_path / "one", tmp_path / "two")
