"""The processes that ``torchrun`` or ``accelerate launch`` has started, or the only one."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from lowbit.loop.passes import default_device

if TYPE_CHECKING:
    from accelerate import PartialState

Result = TypeVar("Result")

_PATIENCE = datetime.timedelta(days=1)  # of the others while the first process scores


def processes() -> PartialState:
    """How many processes there are and which this one is; the first call joins them."""
    from accelerate import PartialState  # here: it takes a second to import

    return PartialState(cpu=default_device().type == "cpu", timeout=_PATIENCE)


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return bool(processes().is_main_process)


def once(call: Callable[[], Result]) -> Result:
    """The result of ``call``, which only the first process makes while the others wait for it."""
    from accelerate.utils import broadcast_object_list

    result = [call() if is_first() else None]
    broadcast_object_list(result)
    return result[0]  # type: ignore[return-value]
