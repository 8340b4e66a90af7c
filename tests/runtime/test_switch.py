import pytest
import torch

import lowbit
from lowbit.errors import AdapterError, UnsupportedModelError
from lowbit.kernels import KERNELS
from lowbit.nn import Int8Linear
from lowbit.runtime import by_task, load_task, prepare, switch
from tests.models import output
from tests.tiny import options, toy_data

LABELS = ("one", "two", "three")


@pytest.fixture
def adapters(tiny, tmp_path):
    """The toy task; another with three labels; one whose step sizes are trained; one with positions of its own."""
    made = {"toy": tiny.adapter("bert")}
    changes = {
        "three": {},
        "scales": {"scales": True, "learning_rate": 0.05},
        "positions": {"positions": "random", "learning_rate": 0.05},
    }
    for name, change in changes.items():
        data = toy_data(LABELS) if name == "three" else toy_data(seed=3)
        made[name] = lowbit.tune(tiny.backbone("bert"), tmp_path / name, data, options=options(**change)).path
    return made


def state(model):
    """Every value that a prepared model computes with."""
    found = {f"float {name}": tensor.detach().clone() for name, tensor in model.named_parameters()}
    for path, module in model.named_modules():
        if isinstance(module, Int8Linear):
            layout = module.layout
            found[path] = KERNELS[layout.kernel].view(layout.packed).clone()
            for part in ("scale", "sums", "bias"):
                found[f"{path} {part}"] = getattr(layout, part).clone()
            for part in ("ptr", "col", "value"):
                found[f"{path} rest {part}"] = getattr(layout.rest, part).clone()
    return found


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("kernel", [None, "onednn", "reference"])
def test_switching_gives_what_preparing_with_the_adapter_gives(tiny, adapters, monkeypatch, kernel):
    if kernel == "onednn" and not torch.cpu._is_avx2_supported():
        pytest.skip("this machine lacks onednn")
    if kernel is not None:
        monkeypatch.setattr("lowbit.runtime.latency.best_kernel", lambda: (kernel, "asked for"))
    backbone = tiny.backbone("bert")
    model = prepare(lowbit.load(backbone, adapters["toy"]), backend="torch")
    first = state(model)
    for name, folder in adapters.items():
        unprepared = lowbit.load(backbone, folder)
        expected = output(unprepared)
        switch(model, folder)
        found = output(model)
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)
        assert model.config.id2label == unprepared.config.id2label
        assert equal(state(model), state(prepare(unprepared, backend="torch"))), name
    assert not equal(state(model), first)
    assert equal(state(switch(model, adapters["toy"])), first)


def test_loaded_tasks_are_switched_in_any_order_and_taken_off(tiny, adapters):
    model = prepare(lowbit.load(tiny.backbone("bert"), adapters["toy"]), backend="torch")
    bare = state(switch(model, None))
    tasks = {name: load_task(model, folder) for name, folder in adapters.items()}
    assert equal(state(model), bare)
    seen = {}
    for name in ("toy", "scales", "positions", "three", "scales", "toy", "positions", "three"):
        found = state(switch(model, tasks[name]))
        assert equal(found, seen.setdefault(name, found)), name
        again = load_task(model, adapters[name])  # while another task is on the model
        assert again.nbytes == tasks[name].nbytes > 0
        assert equal(state(switch(model, again)), found)
    assert equal(state(switch(model, None)), bare)


def test_a_mixed_batch_runs_once_for_each_task_in_input_order(tiny, adapters):
    model = prepare(lowbit.load(tiny.backbone("bert"), adapters["toy"]), backend="torch")
    tasks = {name: load_task(model, adapters[name]) for name in ("toy", "three")}
    calls = []

    def run(rows):
        calls.append(len(rows))
        return list(model(input_ids=torch.stack(rows)).logits)

    rows = list(torch.randint(3, 60, (5, 6), generator=torch.Generator().manual_seed(0)))
    names = ["toy", "three", "toy", "toy", "three"]
    results = by_task(model, tasks, list(zip(names, rows, strict=True)), run)
    assert calls == [3, 2]
    assert [len(result) for result in results] == [2, 3, 2, 2, 3]
    for name, row, result in zip(names, rows, results, strict=True):
        torch.testing.assert_close(run_one(switch(model, tasks[name]), row), result, rtol=1e-3, atol=1e-3)


def run_one(model, row):
    return model(input_ids=row[None]).logits[0]


@pytest.mark.parametrize("recipe", ["w4g8", "w8"])
def test_step_sizes_that_cannot_change_afterwards_are_folded_with_the_backbone(tiny, tmp_path, monkeypatch, recipe):
    monkeypatch.setattr("lowbit.runtime.latency.best_kernel", lambda: ("reference", "asked for"))
    backbone = tiny.backbone("bert", None, recipe)
    changes = options(scales=True, learning_rate=0.05)
    folder = lowbit.tune(backbone, tmp_path / "scales", toy_data(seed=3), options=changes).path
    expected = output(lowbit.load(backbone, folder))
    model = prepare(lowbit.load(backbone, folder), backend="torch")
    torch.testing.assert_close(output(model), expected, rtol=0.05, atol=0.02)
    if recipe == "w4g8":
        with pytest.raises(UnsupportedModelError, match="step sizes cannot change"):
            switch(model, None)


def test_what_cannot_be_switched_to(tiny, adapters):
    model = lowbit.load(tiny.backbone("bert"), adapters["toy"])
    with pytest.raises(UnsupportedModelError, match="call `prepare` first"):
        switch(model, adapters["three"])
    prepare(model, backend="torch")
    before = state(model)
    with pytest.raises(AdapterError, match="was trained on the backbone"):
        switch(model, tiny.adapter("roberta"))
    with pytest.raises(AdapterError, match="train it again"):
        next(m for m in model.modules() if isinstance(m, Int8Linear)).patch(outlier_value=torch.zeros(1))
    assert equal(state(model), before)
