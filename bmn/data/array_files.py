"""Arrays from .npy, .npz, .pt and .pkl files of any source, without running code and without trusting a size.

NumPy's own reader believes the header of a file: a damaged one asks for terabytes, or ends in any exception. Here what
a header says is compared with the bytes that are there.
"""
import ast
import io
import math
import os
import pickle
import re
import zipfile
from typing import Any, Dict, Optional, Tuple

import numpy as np

from bmn import unpickling
from bmn.data.feature_files import few
from bmn.errors import UserError, first_line
from bmn.inputs import check_size, open_input, read_bytes
from bmn.values import counted

ARRAY_EXTENSIONS = (".npy", ".npz", ".pt", ".pkl")
FEATURES = "feats"          # the name that wins where a file holds several arrays
LONGEST_HEADER = 1 << 16
ONE = "make a file with a single array, or call the right one '%s'" % FEATURES      # what to do with several


def read_array(path: str) -> np.ndarray:
    """The numbers of an array file: [rows, columns]. Axes of length 1 are dropped.

    Of several arrays it is the only one of two dimensions with floats, else the one called ``feats``.

    Raises:
        UserError: the file is unreadable, holds several such arrays, or no table of numbers.
    """
    where = "feature file " + path
    content = read_bytes(path, "feature file")
    kind = os.path.splitext(path)[1]
    try:
        arrays = _READERS[kind](content, where)
    except UserError:
        raise
    except Exception as error:      # damaged bytes can end in any exception
        raise UserError("%s is not a readable %s (%s): make it again"
                        % (where, _KINDS[kind], first_line(error)[:120])) from None
    return numbers(arrays, where)


def array_shape(path: str) -> Optional[Tuple[int, ...]]:
    """The shape of the table in a .npy file without its numbers; None where only :func:`read_array` can tell."""
    if not path.endswith(".npy"):
        return None
    with open_input(path, "feature file") as handle:
        try:
            shape = _npy_header(handle.read(LONGEST_HEADER))[1]
        except Exception:       # read_array says what is wrong
            return None
    return table_shape(shape)


def table_shape(shape: Tuple[int, ...]) -> Tuple[int, ...]:
    """The shape of the table in an array of ``shape``: without axes of length 1, where there are more than two."""
    return tuple(length for length in shape if length != 1) if len(shape) > 2 else shape


def numbers(arrays: Any, where: str) -> np.ndarray:
    """The one table of numbers of an array, or of {name: array}; ``where`` names its file in error messages.

    Raises:
        UserError: there is no table, or several, or it does not hold numbers.
    """
    if isinstance(arrays, dict):
        tables = [array for array in arrays.values()
                  if array.dtype.kind == "f" and _without_short_axes(array).ndim == 2]
        if len(tables) == 1:
            arrays = tables[0]
        elif FEATURES in arrays:
            arrays = arrays[FEATURES]
        elif len(arrays) == 1:
            arrays = next(iter(arrays.values()))
        else:
            raise UserError("%s holds %s (%s): %s" % (where, counted(len(arrays), "array"), few(sorted(arrays)), ONE))
    table = _without_short_axes(arrays)
    if table.ndim != 2 or table.dtype.kind not in "fiu":
        raise UserError("%s holds an array of shape %s and type %s, but a table of T x C numbers is needed"
                        % (where, arrays.shape, arrays.dtype))
    return table


def _without_short_axes(array):
    """Without axes of length 1, as long as more than two are left: (1, T, C) and (C, T, 1, 1) are tables."""
    while array.ndim > 2 and 1 in array.shape:
        array = array.reshape(array.shape[:array.shape.index(1)] + array.shape[array.shape.index(1) + 1:])
    return array


def _npy(content, where):
    dtype, shape, fortran, offset = _npy_header(content)
    count = math.prod(shape) if hasattr(math, "prod") else int(np.prod(shape, dtype=object))
    if count * dtype.itemsize > len(content) - offset:
        raise UserError("%s is cut off: its header announces %d numbers of %d bytes, and %d bytes are there: copy or "
                        "make it again" % (where, count, dtype.itemsize, len(content) - offset))
    return np.frombuffer(content, dtype, count, offset).reshape(shape, order="F" if fortran else "C")


def _npy_header(content):
    """(type, shape, whether it is stored column by column, where the numbers begin)"""
    if content[:6] != b"\x93NUMPY" or len(content) < 12:
        raise ValueError("no NumPy file")
    size = 2 if content[6] == 1 else 4
    length = int.from_bytes(content[8:8 + size], "little")
    if length > LONGEST_HEADER:
        raise ValueError("a header of %d bytes" % length)
    text = content[8 + size:8 + size + length].decode("utf-8" if content[6] == 3 else "latin-1")
    header = ast.literal_eval(re.sub(r"(\d)L\b", r"\1", text).strip())      # Python 2 wrote 10L
    dtype, shape = header["descr"], header["shape"]
    if not isinstance(dtype, str) or not isinstance(shape, tuple) or not all(
            type(length) is int and length >= 0 for length in shape):
        raise ValueError("no array of numbers")
    dtype = np.dtype(dtype)
    if dtype.kind not in "fiub":
        raise ValueError("an array of type %s, and numbers are needed" % dtype)
    return dtype, shape, bool(header["fortran_order"]), 8 + size + length


def _npz(content, where):
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        check_size(sum(member.file_size for member in members), where + ", unpacked,")
        for member in members:
            with archive.open(member) as handle:
                arrays[re.sub(r"\.npy$", "", member.filename)] = _npy(handle.read(), where)
    return arrays


def _pt(content, where):
    loaded, foreign = unpickling.load(content)
    if foreign:
        raise UserError("%s holds %s besides tensors: store only the features, with torch.save(tensor, path)"
                        % (where, few(foreign)))
    return _arrays(loaded, where)


def _pkl(content, where):
    return _arrays(_ArrayUnpickler(io.BytesIO(content)).load(), where)


def _arrays(loaded, where):
    """An array, or {name: array}, of what a pickle held: tensors and arrays; other values beside them are left out."""
    import torch  # not above: who reads no such file needs none
    if isinstance(loaded, (torch.Tensor, np.ndarray)):
        loaded = {FEATURES: loaded}
    if not isinstance(loaded, dict):
        raise UserError("%s holds a %s, but a table of T x C numbers is needed" % (where, type(loaded).__name__))
    arrays: Dict[str, np.ndarray] = {}
    for name, value in loaded.items():
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu":
            tensor = value.detach()
            arrays[str(name)] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        elif isinstance(value, np.ndarray):
            arrays[str(name)] = value
    return arrays


_READERS = {".npy": _npy, ".npz": _npz, ".pt": _pt, ".pkl": _pkl}
_KINDS = {".npy": "NumPy file", ".npz": "NumPy file", ".pt": "file of a tensor", ".pkl": "pickle of an array"}


# A pickle of an array, read without NumPy's help: what a pickle asks for is not called, only these are.

class _Type:
    """numpy.dtype in a pickle: its name, and afterwards its byte order."""

    def __init__(self, name, *_):
        self.name, self.order = str(name), ""

    def __setstate__(self, state):
        self.order = state[1] if state[1] in ("<", ">") else ""

    def dtype(self):
        if not re.match(r"^[fiub]\d+$", self.name):
            raise ValueError("an array of type %s" % self.name)
        return np.dtype(self.order + self.name)


class _Reconstructed:
    """An array in a pickle: first empty, then its shape, type and bytes."""

    array = None

    def __setstate__(self, state):
        _version, shape, kind, fortran, content = state
        if isinstance(content, str):        # written by Python 2
            content = content.encode("latin-1")
        self.array = _frombuffer(content, kind, shape, "F" if fortran else "C")


def _frombuffer(content, kind, shape, order):
    dtype = kind.dtype()
    array = np.frombuffer(content, dtype)       # checks the number of bytes, and reshape() that of the numbers
    return array.reshape(tuple(int(length) for length in shape), order="F" if order == "F" else "C")


def _encoded(text, _encoding="latin1"):
    return text.encode("latin-1")


_ALLOWED = {("numpy", "dtype"): _Type, ("numpy", "ndarray"): None, ("_codecs", "encode"): _encoded}
for _package in ("numpy.core", "numpy._core"):
    _ALLOWED[_package + ".multiarray", "_reconstruct"] = lambda *_: _Reconstructed()
    _ALLOWED[_package + ".numeric", "_frombuffer"] = _frombuffer


class _ArrayUnpickler(pickle._Unpickler):
    """Knows arrays of numbers, text, numbers and containers, and nothing else."""

    def __init__(self, handle):
        super().__init__(handle, encoding="latin-1")

    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError("%s.%s is no array, and reading it could run code" % (module, name))
        return _ALLOWED[module, name]

    def persistent_load(self, identity):
        raise pickle.UnpicklingError("no pickle of an array")

    def load(self):
        loaded = super().load()
        if isinstance(loaded, dict):
            return {name: value.array if isinstance(value, _Reconstructed) else value for name, value in loaded.items()}
        return loaded.array if isinstance(loaded, _Reconstructed) else loaded

    def _attributes(self):
        """Attributes of our own two classes alone."""
        state = self.stack.pop()
        if type(self.stack[-1]) not in (_Type, _Reconstructed):
            raise pickle.UnpicklingError("attributes of a %s" % type(self.stack[-1]).__name__)
        self.stack[-1].__setstate__(state)

    dispatch = {**unpickling.OPERATIONS, pickle.BUILD[0]: _attributes}          # noqa: RUF012 (as its parent has it)
