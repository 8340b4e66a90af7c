import contextlib

import pytest
from transformers.utils import logging

from lowbit.checkpoint import quiet_transformers


@pytest.mark.parametrize("bars", [True, False])
def test_quiet_transformers_restores_verbosity_and_bars(bars):
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        with contextlib.suppress(RuntimeError), quiet_transformers():
            assert logging.get_verbosity() == logging.ERROR
            assert not logging.is_progress_bar_enabled()
            raise RuntimeError
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() is bars
    finally:
        logging.set_verbosity(verbosity)
        (logging.enable_progress_bar if had_bars else logging.disable_progress_bar)()
