"""One memory under two device names: a tensor passes through a DLPack capsule whose device field is rewritten."""
import ctypes

import torch

NAME = "npu"
CPU, EXTENSION = 1, 12          # device types of DLPack; PyTorch takes the second for its third-party device


class _DLTensor(ctypes.Structure):
    """The head of DLPack's DLManagedTensor."""

    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype = ctypes.c_void_p
_pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _renamed(tensor, device_type):
    capsule = torch._C._to_dlpack(tensor)
    head = _DLTensor.from_address(_pointer_of(capsule, b"dltensor"))
    head.device_type, head.device_id = device_type, 0
    return torch._C._from_dlpack(capsule)


def on_device(value):
    """Is this a tensor of the simulated device?"""
    return isinstance(value, torch.Tensor) and value.device.type == NAME


def to_cpu(tensor):
    """An NPU tensor's memory as a CPU tensor."""
    return _renamed(tensor, CPU)


def to_npu(tensor):
    """A CPU tensor's memory as an NPU tensor."""
    return _renamed(tensor, EXTENSION)


def converted(value, convert):
    """``value`` with ``convert`` applied to it, or to every item where it is a list or tuple."""
    if isinstance(value, (list, tuple)):
        return type(value)(converted(item, convert) for item in value)
    return convert(value)
