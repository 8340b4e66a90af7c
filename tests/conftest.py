"""Settings and fixtures for the whole suite."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once


@pytest.fixture(scope="session")
def data_dir():
    """The folder with the real data: ``LOWBIT_DATA``, or ``../shared/data`` beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LOWBIT_DATA") or beside)
    if not (folder / "glue").is_dir():
        pytest.skip(f"needs the real data: no folder {folder / 'glue'} (set LOWBIT_DATA)")
    return folder
