"""A trace of a few training steps (--profile), by PyTorch's profiler or that of the device's vendor."""
import contextlib
import os
import sys
from typing import Any, Callable, Iterator

import torch

from bmn.errors import UserError

WAIT, WARM_UP, ACTIVE = 1, 1, 3         # iterations: the first is like no other, the second starts the profiler


def find(kind: str, folder: str) -> Any:
    """The profiler module for a device ("npu", "cuda" or "cpu"); makes ``folder``, where the trace goes.

    Raises:
        UserError: there is no profiler of steps here, or the folder cannot be made.
    """
    module = sys.modules.get("torch_" + kind, torch)        # the vendor's own, or PyTorch's
    profiler = getattr(module, "profiler", None)
    if not hasattr(profiler, "schedule"):
        raise UserError("--profile needs PyTorch 1.8.1 or later, on an NPU torch_npu 2.1 or later, and this is PyTorch "
                        "%s: leave the option out" % torch.__version__)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError("--profile %s cannot be made (%s): give a folder that can be written"
                        % (folder, error.strerror)) from None
    return profiler


@contextlib.contextmanager
def trace(kind: str, folder: str, log: Callable[[str], None]) -> Iterator[Any]:
    """A context that gives a profiler, which wants one ``step()`` per iteration; None where ``folder`` is empty.

    Args:
        kind: the device, as torch names it.
        folder: where the trace goes, for chrome://tracing, Perfetto or the vendor's viewer.
        log: takes one line at the end.

    Raises:
        UserError: as :func:`find`.
    """
    if not folder:
        yield None
        return
    profiler = find(kind, folder)
    activities = profiler.ProfilerActivity
    with profiler.profile(
            activities=[activities.CPU] + ([] if kind == "cpu" else [getattr(activities, kind.upper())]),
            schedule=profiler.schedule(wait=WAIT, warmup=WARM_UP, active=ACTIVE, repeat=1),
            on_trace_ready=profiler.tensorboard_trace_handler(folder)) as steps:
        yield steps
    log("profile: %s" % folder if os.listdir(folder) else "profile: too few iterations for a trace")
