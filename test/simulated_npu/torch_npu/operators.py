"""Operators of the simulated device. They run on CPU memory, after the checks that a real NPU would make."""
import collections
import os
import re
import warnings

import torch
from torch.library import Library

from torch_npu.memory import NAME, converted, on_device, to_cpu, to_npu

KEY = "PrivateUse1"
REFUSED = re.compile("embedding_bag|sparse")
TAKE_CPU_INDICES = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}

calls = collections.Counter()       # operator -> how often it ran on the simulated device

_aten = torch.ops.aten
_libraries = Library("aten", "IMPL"), Library("_", "IMPL")
_cpu_kernel = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_process = os.getpid()


def in_forked_process():
    return os.getpid() != _process


def _check(name, tensors):
    """Refuse what a real NPU refuses."""
    if in_forked_process():
        raise RuntimeError("Cannot re-initialize NPU in forked subprocess")
    if REFUSED.search(name):
        raise NotImplementedError("%s is not implemented on the simulated npu" % name)
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        raise RuntimeError("%s: the simulated npu has no float64" % name)


class _Call:
    """One operator's way to the CPU and back: which tensors came from the device, and under which alias."""

    def __init__(self, name):
        self.name, self.originals, self.cpu_tensors = name, {}, []

    def down(self, value):
        return converted(value, self._down)

    def _down(self, value):
        if on_device(value):
            alias = to_cpu(value)
            self.originals[id(alias)] = value, alias
            return alias
        if isinstance(value, torch.Tensor) and value.dim():
            self.cpu_tensors.append(value)
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def up(self, value):
        return converted(value, self._up)

    def _up(self, value):
        if not isinstance(value, torch.Tensor):
            return value
        return self.originals[id(value)][0] if id(value) in self.originals else to_npu(value)

    def check(self):
        _check(self.name, [original for original, _ in self.originals.values()])
        if self.originals and self.cpu_tensors and self.name not in TAKE_CPU_INDICES:
            raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, npu:0 "
                               "and cpu! (%s, cpu tensor of shape %s)" % (self.name, tuple(self.cpu_tensors[0].shape)))


def _run(operator, *args, **kwargs):
    """Run any operator that has no kernel of its own."""
    call = _Call(operator._schema.name)
    outputs = {argument.name: kwargs.pop(argument.name) for argument in operator._schema.arguments
               if argument.kwarg_only and argument.alias_info and argument.alias_info.is_write}
    args, kwargs = call.down(args), {name: call.down(value) for name, value in kwargs.items()}
    # out= tensors may have to grow, and an alias cannot: compute into fresh ones
    fresh = {name: torch.empty(0, dtype=out.dtype) for name, out in outputs.items()}
    call.cpu_tensors += [out for out in outputs.values() if not on_device(out)]
    call.check()
    calls[call.name] += 1
    result = operator(*args, **kwargs, **fresh)
    for name, out in outputs.items():
        call.originals[id(fresh[name])] = out, fresh[name]
        if out.shape == fresh[name].shape:
            to_cpu(out).copy_(fresh[name])
        else:
            _aten.set_.source_Tensor.redispatch(_cpu_kernel, out, to_npu(fresh[name]))
    return call.up(result)


def _made_on_cpu(operator):
    """empty and empty_strided, which all other factories call."""
    def kernel(*args, device=None, dtype=None, pin_memory=None, **kwargs):
        if device is not None and device.index:
            raise RuntimeError("invalid device %s: one npu is simulated" % device)
        if dtype == torch.float64:
            raise RuntimeError("%s: the simulated npu has no float64" % operator._schema.name)
        _check(operator._schema.name, ())
        return to_npu(operator(*args, device="cpu", dtype=dtype, **kwargs))
    return kernel


def _kept_in_place(operator):
    """Views and set_: the CPU's kernel touches no number, and keeps device and storage."""
    return lambda *args, **kwargs: operator.redispatch(_cpu_kernel, *args, **kwargs)


def _copy_from(source, target, non_blocking=False):
    source, destination = (to_cpu(tensor) if on_device(tensor) else tensor for tensor in (source, target))
    destination.copy_(source)
    return target


def _copy_from_and_resize(source, target):
    if source.shape != target.shape:
        target.resize_(source.shape)
    return _copy_from(source, target)


def _to_copy(tensor, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False,
             memory_format=None):
    """.to(): as in torch_npu, float64 becomes float32 for a tensor of the device."""
    target = tensor.device if device is None else device
    if dtype == torch.float64 and on_device(tensor) and target.type == NAME:
        warnings.warn("the npu does not support double: float is used instead", stacklevel=2)
        dtype = torch.float32
    result = torch.empty_like(tensor, dtype=dtype, device=target,
                              memory_format=memory_format or torch.preserve_format)
    return result.copy_(tensor)


def _resize_(tensor, size, memory_format=None):
    wanted = torch.Size(size).numel()
    storage = tensor.untyped_storage()
    if wanted > storage.nbytes() // tensor.element_size() - tensor.storage_offset():
        grown = to_npu(torch.empty(size, dtype=tensor.dtype))
        kept = min(wanted, tensor.numel())
        to_cpu(grown).view(-1)[:kept].copy_(to_cpu(tensor).reshape(-1)[:kept])
        return _aten.set_.source_Tensor.redispatch(_cpu_kernel, tensor, grown)
    strides = torch.empty(size, device="meta").stride()
    return _aten.set_.source_Storage_storage_offset.redispatch(
        _cpu_kernel, tensor, storage, tensor.storage_offset(), size, strides)


def _convolution(*args):
    return _run(_aten.convolution.default, *args)


def _convolution_backward(grad, data, weight, *rest):
    *geometry, mask = rest
    return _run(_aten.convolution_backward.default, grad, data, weight, [weight.shape[0]], *geometry, mask)


def named(name):
    """"sum.dim_IntList" -> that overload of aten."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(_aten, packet), overload or "default")


def register():
    aten, everything = _libraries
    for name in ("empty.memory_format", "empty_strided"):
        aten.impl(name, _made_on_cpu(named(name)), KEY)
    for name in ("as_strided", "view", "_reshape_alias", "unfold", "set_.source_Tensor", "set_.source_Storage",
                 "set_.source_Storage_storage_offset"):
        aten.impl(name, _kept_in_place(named(name)), KEY)
    for name, kernel in (("_copy_from", _copy_from), ("_copy_from_and_resize", _copy_from_and_resize),
                         ("_to_copy", _to_copy), ("resize_", _resize_),
                         ("convolution_overrideable", _convolution),
                         ("convolution_backward_overrideable", _convolution_backward)):
        aten.impl(name, kernel, KEY)
    everything.fallback(_run, KEY)
