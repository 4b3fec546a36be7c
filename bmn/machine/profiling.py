"""A trace of a few training steps (--profile), by the profiler that this device and this PyTorch have."""
import contextlib
import os
import sys

import torch

from bmn.errors import UserError

WAIT, WARM_UP, ACTIVE = 1, 1, 3         # iterations: the first is like no other, the second starts the profiler


@contextlib.contextmanager
def trace(kind, folder, log):
    """A context whose object wants one ``step()`` per iteration. Without ``folder`` it does nothing.

    Args:
        kind: the device, as torch names it.
        folder: where the trace goes, for chrome://tracing, Perfetto or the vendor's viewer.
        log: takes one line at the end.

    Raises:
        UserError: the folder cannot be made.
    """
    if not folder:
        yield _NoTrace()
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError("--profile %s cannot be made (%s): give a folder that can be written"
                        % (folder, error.strerror)) from None
    profiler = getattr(sys.modules.get("torch_" + kind, torch), "profiler", None)   # the vendor's own, or PyTorch's
    with _by_schedule(profiler, kind, folder) if hasattr(profiler, "schedule") else _OldTrace(kind, folder) as steps:
        yield steps
    log("profile: %s" % folder if os.listdir(folder) else "profile: too few iterations for a trace")


def _by_schedule(profiler, kind, folder):
    activities = profiler.ProfilerActivity
    return profiler.profile(
        activities=[activities.CPU] + ([] if kind == "cpu" else [getattr(activities, kind.upper())]),
        schedule=profiler.schedule(wait=WAIT, warmup=WARM_UP, active=ACTIVE, repeat=1),
        on_trace_ready=profiler.tensorboard_trace_handler(folder))


class _NoTrace:
    def step(self):
        pass


class _OldTrace:
    """The profiler of PyTorch 1.5 (on an NPU also of 1.8 and 1.11), which knows no steps."""

    def __init__(self, kind, folder):
        self.how = {} if kind == "cpu" else {"use_" + kind: True}
        self.path, self.done, self.running = os.path.join(folder, "trace.json"), 0, None

    def __enter__(self):
        return self

    def step(self):
        self.done += 1
        if self.done == WAIT + WARM_UP:
            self.running = torch.autograd.profiler.profile(**self.how)
            self.running.__enter__()
        elif self.done == WAIT + WARM_UP + ACTIVE:
            self._write()

    def _write(self):
        self.running.__exit__(None, None, None)
        self.running.export_chrome_trace(self.path)
        self.running = None

    def __exit__(self, kind, error, trace):
        if self.running is not None:
            self._write()
