"""Reading files of ``torch.save`` from any source without running code.

PyTorch has been able to do this since 2.5, with what torch_npu writes as well (weights_only, safe_globals). The oldest
versions run any code that a file names.
Both of PyTorch's formats are pickles together with the raw bytes of tensors. Here an unpickler that knows only tensors
and plain containers reads the pickles. What else a file names, such as a training's record, is neither imported nor
called. Shapes are checked against the bytes in the file, because old PyTorch corrupts
its memory when a file ends too early.
"""
import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from typing import Any, List, Tuple

import numpy as np
import torch

BFLOAT16 = "bfloat16"       # NumPy has no such type
_DTYPES = {"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8",
           "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1", "BoolStorage": "?",
           "BFloat16Storage": BFLOAT16}


class Foreign:
    """Stands for an object of any class that this reader does not know. It takes what it is given and does nothing."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *_, **__):
        pass

    def _ignore(self, *_):
        pass

    append = extend = add = __setitem__ = _ignore


def load(content: bytes) -> Tuple[Any, List[str]]:
    """The object in ``content``, the bytes of a file by ``torch.save``, with its tensors on the CPU. No code is run.

    Returns:
        (the object, names of the classes and functions in it that are neither tensors nor plain values). In the place
        of what these would have made stand objects of class Foreign, which do nothing.

    Raises:
        Exception: of any kind, where the bytes are damaged.
    """
    if not hasattr(torch.serialization, "safe_globals"):
        return load_on_old_pytorch(content)
    try:
        with torch.serialization.safe_globals([_rebuild_npu_tensor]):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), []
    except pickle.UnpicklingError:          # a class that PyTorch's reader refuses
        return load_on_old_pytorch(content)


def _rebuild_npu_tensor(*arguments):
    """A tensor that torch_npu before version 2.1 saved from a device; its last argument is a memory layout."""
    return torch._utils._rebuild_tensor_v2(*arguments[:6])


_rebuild_npu_tensor.__module__ = "torch_npu.utils.storage"      # its name in such files


def load_on_old_pytorch(content: bytes) -> Tuple[Any, List[str]]:
    """The same as :func:`load`, for a PyTorch before 2.5, and for files with objects of other classes."""
    return _load_zip(content) if content.startswith(b"PK") else _load_old(content)


def _load_zip(content):
    """The format since PyTorch 1.6: a zip archive of data.pkl and one member with the values of each tensor."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled[:-len("data.pkl")] + "data/"

        def values_of(key, dtype, count):
            values = np.frombuffer(archive.read(folder + key), dtype).copy()
            if len(values) != count:
                raise ValueError("%d values where %d are announced" % (len(values), count))
            return values

        reader = _Unpickler(io.BytesIO(archive.read(pickled)), values_of)
        return reader.load(), reader.foreign


def _load_old(content):
    """The format before PyTorch 1.6.

    It consists of five pickles: a magic number, a version, the machine, the object, and the keys of its tensors. Then
    the number of values and the values follow for each key.
    """
    handle = io.BytesIO(content)
    arrays = {}

    def values_of(key, dtype, count):       # the values come after the pickles and are filled in below
        if not 0 <= count * np.dtype(dtype).itemsize <= len(content):
            raise ValueError("%d values are announced, more than the file holds" % count)
        return arrays.setdefault(key, np.zeros(count, dtype))

    for _ in range(3):
        _Unpickler(handle).load()
    reader = _Unpickler(handle, values_of)
    loaded = reader.load()
    for key in _Unpickler(handle).load():
        values = arrays.pop(key)
        count = np.frombuffer(handle.read(8), "<i8", count=1)[0]
        if count != len(values):
            raise ValueError("%d values where %d are announced" % (count, len(values)))
        values[:] = np.frombuffer(handle.read(values.nbytes), values.dtype, count=len(values))
    if arrays:
        raise ValueError("the values of %d tensors are missing" % len(arrays))
    return loaded, reader.foreign


def _bytes_that_are_there(reader):
    """A bytearray; Python's own takes as much memory as the file asks for, before it looks for the bytes."""
    length = int.from_bytes(reader.read(8), "little")
    content = reader.read(min(length, sys.maxsize))
    if len(content) != length:
        raise pickle.UnpicklingError("%d bytes where %d are announced" % (len(content), length))
    reader.append(bytearray(content))


BYTEARRAY8 = 150
OPERATIONS = {**pickle._Unpickler.dispatch, BYTEARRAY8: _bytes_that_are_there}


class _Unpickler(pickle._Unpickler):
    """Knows only tensors and plain values. It extends pickle's Python version, because that can be restricted more.

    ``foreign`` lists the names of everything else that the file asks for.
    """

    def __init__(self, handle, values_of=None):
        super().__init__(handle, encoding="utf-8")
        self.values_of = values_of          # (key, dtype, count) -> the values of a tensor
        self.foreign = []

    def find_class(self, module, name):
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if "%s.%s" % (module, name) not in self.foreign:
            self.foreign.append("%s.%s" % (module, name))
        return Foreign

    def persistent_load(self, identity):
        kind, dtype, key, _location, count = identity[:5]
        if kind != "storage" or dtype not in _DTYPES.values() or any(identity[5:]):
            raise pickle.UnpicklingError("an unknown kind of tensor: %r of %r" % (kind, dtype))
        values = self.values_of(str(key), "<i2" if dtype == BFLOAT16 else dtype, int(count))
        if dtype != BFLOAT16:
            return values
        try:
            return torch.from_numpy(values).view(torch.bfloat16)
        except TypeError:
            raise pickle.UnpicklingError("PyTorch %s has no bfloat16 for files" % torch.__version__) from None

    def _attributes(self):
        """Drop the version numbers that PyTorch sets on a state_dict; refuse attributes of any other known object."""
        self.stack.pop()
        if type(self.stack[-1]) not in (OrderedDict, Foreign):
            raise pickle.UnpicklingError("attributes of a %s" % type(self.stack[-1]))

    dispatch = {**OPERATIONS, pickle.BUILD[0]: _attributes}     # noqa: RUF012 (as its parent has it)


def _tensor(values, offset, size, stride, *_):
    """Tensor over the array ``values``; its other arguments (gradient, hooks) are not needed here."""
    if len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in (offset,) + size + stride):
        raise ValueError("impossible shape %s, strides %s, offset %s" % (size, stride, offset))
    count = 1
    for length in size:
        count *= length
    last = offset + sum((length - 1) * step for length, step in zip(size, stride))
    if count > len(values) or (count and last >= len(values)):
        raise ValueError("shape %s does not fit %d values" % (size, len(values)))
    return torch.as_tensor(values).as_strided(size, stride, offset)


def _parameter(tensor, *_):
    return tensor


_KNOWN = {("collections", "OrderedDict"): OrderedDict, ("torch", "Size"): tuple,
          ("torch._utils", "_rebuild_tensor_v2"): _tensor, ("torch._utils", "_rebuild_parameter"): _parameter,
          ("torch_npu.utils.storage", "_rebuild_npu_tensor"): _tensor}
_KNOWN.update((("torch", name), dtype) for name, dtype in _DTYPES.items())
