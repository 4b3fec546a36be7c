"""Every sentence about an array file is true of the file, and no file of others runs code."""
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from bmn.data.array_files import array_shape, read_array
from bmn.errors import UserError
from bmn.unpickling import load_on_old_pytorch

TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def npy(table, **header):
    """The bytes of a .npy file, with another header where one is given."""
    buffer = io.BytesIO()
    np.save(buffer, table)
    content = buffer.getvalue()
    length = int.from_bytes(content[8:10], "little")
    if header:
        text = repr(dict({"descr": "<f4", "fortran_order": False, "shape": table.shape}, **header)).encode()
        content = content[:8] + len(text).to_bytes(2, "little") + text + content[10 + length:]
    return content


class Odd:
    """An object whose pickle asks for what no array needs."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def persistent():
    buffer = io.BytesIO()
    Elsewhere(buffer, 2).dump([1j])
    return buffer.getvalue()


class Elsewhere(pickle.Pickler):
    def persistent_id(self, one):
        return "elsewhere" if isinstance(one, complex) else None


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name, content, words", [
    ("a.npy", b"PK" + bytes(40), "not a readable NumPy file .no NumPy file."),
    ("a.npy", b"\x93NUMPY\x01\x00", "not a readable NumPy file .no NumPy file."),
    ("a.npy", b"\x93NUMPY\x02\x00" + (1 << 20).to_bytes(4, "little") + bytes(40), "a header of 1048576 bytes"),
    ("a.npy", npy(TABLE, shape=(4, -3)), "no array of numbers"),
    ("a.npy", npy(TABLE, descr="|O"), "numbers are needed"),
    ("a.npy", npy(TABLE[0]), r"an array of shape \(3,\) and type float32, but a table of T x C numbers is needed"),
    ("a.npy", npy(TABLE > 3), "type bool, but a table of T x C numbers"),
    ("a.pt", saved([torch.zeros(4, 3)]), "holds a list, but a table of T x C numbers is needed"),
    ("a.pt", saved({"a": torch.zeros(4, 3), "b": torch.zeros(2, 3)}), "holds 2 arrays .a, b."),
    ("a.pkl", pickle.dumps((1, 2), 2), "holds a tuple, but a table"),
    ("a.pkl", pickle.dumps(np.array([None, "a"]), 2), "an array of type O"),
    ("a.pkl", persistent(), "no pickle of an array"),
    ("a.pkl", pickle.dumps(Odd(eval, ("1 / 0",)), 2), "eval is no array, and reading it could run code"),
    ("a.pkl", pickle.dumps(Odd(np.dtype, ("f4",), {"name": 1}), 2), "not a readable pickle of an array")])
def test_what_is_no_table_is_refused_in_a_true_sentence(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        read_array(str(tmp_path / name))
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_an_array_of_python_2_is_read(tmp_path):
    """Its bytes are text in the pickle."""
    size, raw = bytes([TABLE.nbytes]), TABLE.tobytes()
    content = pickle.dumps(TABLE, 3)
    assert b"C" + size + raw in content
    (tmp_path / "a.pkl").write_bytes(content.replace(b"C" + size + raw, b"U" + size + raw))
    np.testing.assert_array_equal(read_array(str(tmp_path / "a.pkl")), TABLE)


def test_the_shape_is_that_of_the_table_or_unknown(tmp_path, rng):
    for shape in ((4, 3), (1, 4, 3), (4, 1, 1, 3), (1, 1, 5), (1, 7)):
        np.save(str(tmp_path / "a.npy"), rng.rand(*shape))
        assert array_shape(str(tmp_path / "a.npy")) == read_array(str(tmp_path / "a.npy")).shape or shape == (1, 1, 5)
    (tmp_path / "a.npy").write_bytes(b"damaged")
    assert array_shape(str(tmp_path / "a.npy")) is None and array_shape("a.pt") is None


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("announced", [b"K\x03", b"\x8a\x06" + bytes(5) + b"\x01"])       # 3, and 2 ** 40
def test_a_tensor_that_announces_more_numbers_than_there_are_is_refused(old, announced):
    """What a file says of a size is compared with its bytes before memory is asked for."""
    buffer, files = io.BytesIO(), {"data.pkl": None}
    torch.save({"a": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=not old)
    content = buffer.getvalue()
    if not old:
        with zipfile.ZipFile(buffer) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in files if name.endswith("data.pkl"))
    text = content if old else files[pickled]
    place = text.index(b"K\x02", text.index(b"cpu"))       # behind the device stands the number of values
    text = text[:place] + announced + text[place + 2:]
    if not old:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in files:
                archive.writestr(name, text if name == pickled else files[name])
        text = buffer.getvalue()
    with pytest.raises(ValueError, match="announced"):
        load_on_old_pytorch(text)
