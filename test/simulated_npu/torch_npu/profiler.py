"""``torch_npu.profiler``: PyTorch's own, because the simulated device computes on the CPU."""
import enum

import torch.profiler
from torch.profiler import schedule, tensorboard_trace_handler

__all__ = ["ProfilerActivity", "profile", "schedule", "tensorboard_trace_handler"]


class ProfilerActivity(enum.Enum):
    CPU = 0
    NPU = 1


def profile(activities, **how):
    if not all(isinstance(activity, ProfilerActivity) for activity in activities):
        raise TypeError("torch_npu.profiler takes its own ProfilerActivity, found %s" % (activities,))
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], **how)
