"""Checkpoints that are truncated, damaged, foreign or full of code; and the reader for a PyTorch without a safe one."""
import collections
import datetime
import io
import os
import pickle
import random
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from test_checkpoint import refusal, same

from bmn import unpickling
from bmn.errors import UserError
from bmn.machine.device import TORCH
from bmn.training import checkpoint


def damaged(content, generator):
    """``content`` cut, or with bits, bytes or a block changed; half the time near its beginning."""
    content = bytearray(content)

    def position():
        return generator.randrange(min(len(content), 4000) if generator.random() < 0.5 else len(content))

    kind = generator.choice(["cut", "bit", "bytes", "block"])
    if kind == "cut":
        return bytes(content[:position()])
    if kind == "bit":
        content[position()] ^= 1 << generator.randrange(8)
    elif kind == "bytes":
        for _ in range(5):
            content[position()] = generator.randrange(256)
    else:
        at = position()
        content[at:at + 64] = bytes(64)[:len(content) - at]
    return bytes(content)


def small_checkpoint(form):
    """(bytes, state_dict) of a checkpoint of few numbers, for quick fuzzing."""
    tensors = OrderedDict(("module.layer%d" % i, torch.full((5, 7), i + 0.5)) for i in range(6))
    buffer = io.BytesIO()
    torch.save({"epoch": 1, "state_dict": tensors}, buffer, _use_new_zipfile_serialization=form == "zip")
    return buffer.getvalue(), tensors


def test_our_damaged_file_is_always_refused(tmp_path):
    path = str(tmp_path / "x.pth")
    checkpoint.save(path, {"epoch": 1, "state_dict": small_checkpoint("old")[1]})
    with open(path, "rb") as handle:
        whole = handle.read()
    generator = random.Random(1)
    tries = [damaged(whole, generator) for _ in range(500)] + [whole[:-n] for n in range(1, 200)]
    for content in tries:
        if content != whole:
            with open(path, "wb") as handle:
                handle.write(content)
            assert path in refusal(checkpoint.read, path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "old"])
@pytest.mark.parametrize("reader", ["torch", "unpickling"])
def test_a_damaged_foreign_file_is_refused_or_read(tmp_path, form, reader, monkeypatch):
    """A zip archive has checksums. PyTorch's old format has none: numbers may differ, but nothing worse happens."""
    if reader == "unpickling":
        monkeypatch.setattr(unpickling, "load", unpickling.load_on_old_pytorch)
    path = str(tmp_path / "x.pth")
    whole, tensors = small_checkpoint(form)
    generator, outcomes = random.Random(2), {"refused": 0, "read": 0}
    for _ in range(400):
        with open(path, "wb") as handle:
            handle.write(damaged(whole, generator))
        try:
            found = checkpoint.read(path)["state_dict"]
        except UserError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
            assert form == "old" or same(found, {name[7:]: tensor for name, tensor in tensors.items()})
    assert outcomes["refused"] > 200


class _Touch:
    """Makes a folder when a reader that trusts it unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def files_with_code(canary):
    """{name: bytes} of checkpoints that would run code."""
    content = {"epoch": 1, "state_dict": OrderedDict(a=torch.ones(2)), "surprise": _Touch(canary)}
    files = {"bare pickle": pickle.dumps(content)}
    for zipped in (False, True):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
        files["zip" if zipped else "old"] = buffer.getvalue()
    first = files["old"].index(b"\x80\x02M")        # before the object, the old format has three other pickles
    files["in the header"] = files["old"][:first] + pickle.dumps(_Touch(canary), 2)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:     # PyTorch's oldest form
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(files["bare pickle"])
            archive.addfile(member, io.BytesIO(files["bare pickle"]))
    files["tar"] = buffer.getvalue()
    return files


@pytest.mark.parametrize("name", ["bare pickle", "in the header", "tar", "instead of weights"])
def test_code_is_refused_and_not_run(tmp_path, name):
    canary = str(tmp_path / "ran")
    if name == "instead of weights":
        torch.save({"epoch": 1, "state_dict": _Touch(canary)}, str(tmp_path / "x.pth"))
    else:
        (tmp_path / "x.pth").write_bytes(files_with_code(canary)[name])
    sentence = refusal(checkpoint.read, str(tmp_path / "x.pth"))
    assert ("mkdir" in sentence and "could run code" in sentence) == (name == "instead of weights")
    assert not os.path.exists(canary)


@pytest.mark.parametrize("name", ["zip", "old"])
@pytest.mark.parametrize("reader", ["torch", "unpickling"])
def test_objects_beside_the_weights_do_nothing_and_are_named(tmp_path, name, reader, monkeypatch):
    if reader == "unpickling":
        monkeypatch.setattr(unpickling, "load", unpickling.load_on_old_pytorch)
    canary = str(tmp_path / "ran")
    (tmp_path / "x.pth").write_bytes(files_with_code(canary)[name])
    state = checkpoint.read(str(tmp_path / "x.pth"))
    assert torch.equal(state["state_dict"]["a"], torch.ones(2)) and "surprise" not in state
    remark, = checkpoint.remarks(state)
    assert "mkdir" in remark and "no code was run" in remark
    assert not os.path.exists(canary)


class _Record:
    """What a training keeps beside its weights: a class with attributes, lists, arrays and other containers."""

    def __init__(self):
        self.history = np.arange(3.0)


def test_records_of_other_programs_are_left_out(tmp_path):
    tensor = torch.ones(2)
    try:
        tensor.short().view(torch.bfloat16)
        tensor = tensor.bfloat16()
    except TypeError:
        pass        # this PyTorch has no bfloat16 for files
    content = {"meta": {"epoch": 9, "when": datetime.date(2020, 1, 1)}, "message_hub": {"log": _Record()},
               "state_dict": {"a": tensor}, "more": [collections.deque([1]), {1, 2}, 2 + 1j,
                                                                      collections.defaultdict(list, x=[1])]}
    for zipped in (False, True):
        torch.save(content, str(tmp_path / "x.pth"), _use_new_zipfile_serialization=zipped)
        state = checkpoint.read(str(tmp_path / "x.pth"))
        assert state["state_dict"]["a"].tolist() == [1, 1] and state["foreign"] and "message_hub" not in state
        pickle.dumps(state)         # rank 0 sends it to the others


def test_the_reader_for_old_pytorch_sets_no_attributes():
    evil = (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.")
    buffer = io.BytesIO(small_checkpoint("old")[0])
    pickles = [pickle.dumps(pickle.load(buffer), 2) for _ in range(3)]
    with pytest.raises(pickle.UnpicklingError, match="attributes"):
        unpickling.load_on_old_pytorch(b"".join(pickles) + evil)


def test_old_format_with_missing_numbers_is_refused():
    """One file ends after the first number of its last tensor; in another the list of keys lacks a tensor."""
    whole, _ = small_checkpoint("old")
    with pytest.raises(ValueError, match="smaller than"):
        unpickling.load_on_old_pytorch(whole[:-34 * 4])
    handle = io.BytesIO(whole)
    for _ in range(3):
        pickle.load(handle)
    unpickling._Unpickler(handle, lambda key, dtype, count: np.zeros(count, dtype)).load()
    at = handle.tell()
    keys = pickle.load(handle)
    with pytest.raises(ValueError, match="the values of 1 tensors are missing"):
        unpickling.load_on_old_pytorch(whole[:at] + pickle.dumps(keys[:-1], 2) + whole[handle.tell():])


@pytest.mark.parametrize("identity", [
    ("storage", {}, "0", "cpu", 3, None), ("storage", "O", "0", "cpu", 3, None), ("module", "<f4", "0", "cpu", 3, None),
    ("storage", "<f4", "0", "cpu", 3, ("1", 0, 2))])
def test_tensors_of_an_unknown_kind_are_refused(identity):
    reader = unpickling._Unpickler(io.BytesIO(), lambda key, dtype, count: np.zeros(count, dtype))
    assert reader.persistent_load(("storage", "<f4", "0", "cpu", 3, None)).tolist() == [0, 0, 0]
    with pytest.raises(pickle.UnpicklingError, match="unknown kind"):
        reader.persistent_load(identity)


@pytest.mark.parametrize(("offset", "size", "stride"), [
    (0, (7,), (1,)), (1, (6,), (1,)), (0, (2, 3), (3, 2)), (0, (1, 2), (0, 6)), (6, (1,), (1,)), (-1, (2,), (1,)),
    (0, (-1,), (1,)), (0, (3,), (-1,)), (0, (2 ** 40,), (0,)), (0, (2, 3), (3,)), (0, (2.0,), (1,)),
    (0, (True,), (1,)), (2 ** 62, (2,), (2 ** 62,))])
def test_a_tensor_outside_its_numbers_is_refused(offset, size, stride):
    """Old PyTorch would read or write beyond the numbers of the tensor."""
    assert unpickling._tensor(np.arange(6.), 1, (2, 2), (3, 1)).tolist() == [[1, 2], [4, 5]]
    with pytest.raises(ValueError, match="shape"):
        unpickling._tensor(np.arange(6.), offset, size, stride)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "x.pth"))
    assert "is a TorchScript program and not a checkpoint" in refusal(checkpoint.read, str(tmp_path / "x.pth"))


@pytest.mark.parametrize("content", [3, [1, 2], "text", {}, {"state_dict": {}}, {"state_dict": 5}, {"epoch": 1},
                                     {"state_dict": {"a": 1.0}}, {"state_dict": {1: torch.ones(1)}},
                                     {"state_dict": {"a": torch.ones(2).long()}}, torch.ones(3)])
def test_other_content_is_refused(tmp_path, content):
    torch.save(content, str(tmp_path / "x.pth"))
    assert "is not a checkpoint of this network" in refusal(checkpoint.read, str(tmp_path / "x.pth"))


def test_an_epoch_that_is_no_number_is_refused(tmp_path):
    torch.save({"epoch": "many", "state_dict": {"a": torch.ones(2)}}, str(tmp_path / "x.pth"))
    assert "its epoch is a str and no number" in refusal(checkpoint.read, str(tmp_path / "x.pth"))


@pytest.mark.parametrize(("content", "expected"), [
    (b"", "is empty"), (b"PK\x03\x04 but no archive", "truncated or damaged"), (b"video,subset\n", "is not a PyTorch"),
    (b"\x89HDF\r\n", "is not a PyTorch")])
def test_foreign_bytes_are_refused(tmp_path, content, expected):
    (tmp_path / "x.pth").write_bytes(content)
    assert expected in refusal(checkpoint.read, str(tmp_path / "x.pth"))


def test_a_zip_archive_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(str(tmp_path / "x.pth"), "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "truncated or damaged" in refusal(checkpoint.read, str(tmp_path / "x.pth"))


def test_missing_and_unreadable_files_are_refused(tmp_path):
    assert "does not exist" in refusal(checkpoint.read, str(tmp_path / "none.pth"))
    assert "is a folder and not a file" in refusal(checkpoint.read, str(tmp_path))


@pytest.mark.parametrize("zipped", [False, True])
def test_the_reader_for_old_pytorch_reads_what_pytorch_writes(zipped):
    shared = torch.arange(24.)
    content = {"views": [shared.view(4, 6).t(), shared[5:9]], "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5),
               "weight": torch.nn.Parameter(torch.ones(2)), "epoch": 3, "none": None, "text": ("a", True, 0.5),
               "state_dict": torch.nn.Linear(3, 2).state_dict(), "size": torch.Size([2, 3])}
    content.update((str(dtype), torch.arange(5).to(dtype)) for dtype in (
        torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool))
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    found, foreign = unpickling.load_on_old_pytorch(buffer.getvalue())
    assert foreign == []

    def check(one, other):
        if isinstance(other, torch.Tensor):
            assert one.dtype == other.dtype and torch.equal(one.double(), other.double())
        elif isinstance(other, dict):
            assert list(one) == list(other)
            for key in other:
                check(one[key], other[key])
        elif isinstance(other, list):
            for pair in zip(one, other):
                check(*pair)
        else:
            assert one == other

    check(found, content)


@pytest.mark.skipif(TORCH < (1, 6), reason="this PyTorch writes no zip files")
@pytest.mark.parametrize("name", ["x.pth", "a-long-name-of-a-checkpoint.pth.tar"])
def test_the_old_reader_reads_a_zip_file_saved_under_any_path(tmp_path, name):
    """PyTorch names the folder in the archive after the file, and "archive" only where it writes to memory."""
    torch.save({"state_dict": {"a": torch.arange(5.0)}}, str(tmp_path / name))
    loaded, _ = unpickling.load_on_old_pytorch((tmp_path / name).read_bytes())
    assert torch.equal(loaded["state_dict"]["a"], torch.arange(5.0))


class Writer:
    """An object whose pickle would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("load", [unpickling.load, unpickling.load_on_old_pytorch])
def test_no_code_in_a_file_is_run(tmp_path, load):
    torch.save({"a": Writer(str(tmp_path / "ran"))}, str(tmp_path / "evil.pth"))
    loaded, names = load((tmp_path / "evil.pth").read_bytes())
    assert isinstance(loaded["a"], unpickling.Foreign) and len(names) == 1 and not (tmp_path / "ran").exists()
