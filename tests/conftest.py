"""Settings and fixtures for the whole suite."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once

settings.register_profile("suite", deadline=None)  # a busy machine is no failure
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def same_precision_everywhere(monkeypatch):
    """``auto`` is float32 in the tests, whatever the processor has; those of bf16 ask for it."""
    monkeypatch.setattr("lowbit.loop.passes.cpu_has_bf16", lambda: False)


@pytest.fixture(scope="session")
def data_dir():
    """The folder with the real data: ``LOWBIT_DATA``, or ``../shared/data`` beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LOWBIT_DATA") or beside)
    if not (folder / "glue").is_dir():
        pytest.skip(f"needs the real data: no folder {folder / 'glue'} (set LOWBIT_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Tiny float models, backbones, adapters and merged models on disk, each made once; not to be changed."""
    import lowbit.tuning.trainer  # noqa: F401
    from tests.tiny import Tiny

    gc.freeze()  # Trainer collects garbage after every run: half a second, were the imported modules searched too
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def with_threads():
    """Calls a function with one thread and with two, or with other numbers of them; gives all results."""
    import torch

    before = torch.get_num_threads()

    def call(function, numbers=(1, 2)):
        results = []
        for threads in numbers:
            torch.set_num_threads(threads)
            results.append(function())
        return results

    yield call
    torch.set_num_threads(before)
