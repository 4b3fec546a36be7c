"""Checkpoints: what a run needs to go on, every accepted form, and every way in which a file can be wrong."""
import errno
import io
import os
import pickle
import random
import subprocess
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

import checkpoint
import unpickling
from boundary_matching import dense_weights
from defaults import with_defaults
from errors import UserError
from models import BMN

SMALL = {"temporal_scale": 8, "num_sample": 4, "num_sample_perbin": 3, "prop_boundary_ratio": 0.5, "feat_dim": 8}
OPTIONS = with_defaults(dict(SMALL, step_size=2))


class Precision:
    """Stands for amp.Precision."""

    def __init__(self):
        self.state = {"kind": "none", "skipped": 0}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def new_run(**options):
    torch.manual_seed(3)
    model = BMN(dict(SMALL, **options))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1), Precision()


def train(model, optimizer, scheduler, steps):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum((output - torch.rand(output.shape)).pow(2).sum() for output in model(torch.rand(2, 8, 8)))
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def state_of(run, epoch=3):
    return checkpoint.training_state(*run, epoch=epoch, best_loss=0.25, opt=OPTIONS,
                                     metrics=[{"epoch": 0, "fps": 1.5}], random_states=[{"cpu": torch.get_rng_state()}])


@pytest.fixture(scope="module")
def network():
    return new_run()[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint after three steps, and the losses that followed in the run that wrote it."""
    run = new_run()
    train(*run[:3], steps=3)
    path = str(tmp_path_factory.mktemp("written") / checkpoint.LAST)
    checkpoint.save(path, state_of(run))
    return path, train(*run[:3], steps=3)


def refusal(action, *arguments):
    """The one sentence with which it is refused."""
    with pytest.raises(UserError) as caught:
        action(*arguments)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 400
    return sentence


def same(found, wanted):
    return list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


# A run goes on

def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_digit(written):
    path, expected = written
    run = new_run()
    state = checkpoint.read(path)
    checkpoint.restore_training(state, *run)
    torch.set_rng_state(state["random_states"][0]["cpu"])
    assert train(*run[:3], steps=3) == expected
    assert (state["epoch"], state["best_loss"], state["metrics"]) == (3, 0.25, [{"epoch": 0, "fps": 1.5}])
    assert state["options"] == OPTIONS
    assert run[3].state == {"kind": "none", "skipped": 0}


def test_anyone_reads_our_file_with_plain_torch_load(written):
    loaded = torch.load(written[0])
    assert loaded["epoch"] == 3
    assert list(loaded["state_dict"]) == list(BMN(SMALL).state_dict())
    assert {type(tensor) for tensor in loaded["state_dict"].values()} == {torch.Tensor}


def test_steps_are_numbers_for_old_pytorch(written):
    steps = {type(value["step"]) for value in checkpoint.read(written[0])["optimizer"]["state"].values()}
    assert steps == {int}


def test_a_parallel_model_is_saved_under_its_own_names(network):
    parallel = torch.nn.Module()
    parallel.module = network
    assert same(checkpoint.network_state(parallel), network.state_dict())


def test_a_network_alone_does_not_resume(tmp_path, network):
    torch.save({"epoch": 1, "state_dict": network.state_dict()}, str(tmp_path / "network.pth"))
    state = checkpoint.read(str(tmp_path / "network.pth"))
    assert "--finetune 1" in refusal(checkpoint.restore_training, state, *new_run())


def test_a_run_does_not_change_its_learning_rate_unnoticed(written):
    run = new_run()
    run[1].param_groups[0]["initial_lr"] = 0.01
    assert "--training_lr 0.001, and this is 0.01" in refusal(
        checkpoint.restore_training, checkpoint.read(written[0]), *run)


def test_a_state_of_another_kind_of_run_is_refused(written):
    state = checkpoint.read(written[0])
    state["optimizer"]["param_groups"] = []
    assert "does not fit" in refusal(checkpoint.restore_training, state, *new_run())


def test_what_a_safe_reader_would_refuse_is_not_written(tmp_path):
    with pytest.raises(TypeError, match="numpy"):
        checkpoint.save(str(tmp_path / "x.pth"), {"state_dict": {}, "best_loss": np.float64(1)})
    assert os.listdir(str(tmp_path)) == []


# Every accepted form

@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_accepted_forms(tmp_path, network, prefix, masked, bare, zipped):
    tensors = OrderedDict((prefix + name, tensor) for name, tensor in network.state_dict().items())
    if masked:
        tensors[prefix + "sample_mask"] = torch.nn.Parameter(
            torch.from_numpy(dense_weights(8, 4, 3, 0.5)).view(8, -1), requires_grad=False)
    path = str(tmp_path / "x.pth")
    torch.save(tensors if bare else {"epoch": 9, "state_dict": tensors}, path, _use_new_zipfile_serialization=zipped)
    model = BMN(SMALL)
    rest = checkpoint.load_network(path, model)
    assert rest == {"epoch": 0 if bare else 9, "path": path}
    assert same(model.state_dict(), network.state_dict())


def test_half_precision_is_cast(tmp_path, network):
    half = OrderedDict((name, tensor.half()) for name, tensor in network.state_dict().items())
    torch.save({"epoch": 1, "state_dict": half}, str(tmp_path / "half.pth"))
    model = BMN(SMALL)
    checkpoint.load_network(str(tmp_path / "half.pth"), model)
    assert same(model.state_dict(), {name: tensor.float() for name, tensor in half.items()})


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_tensors_that_an_npu_wrote(tmp_path, monkeypatch):
    for name in ("torch_npu", "torch_npu.utils", "torch_npu.utils.storage"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def _rebuild_npu_tensor():
        pass

    class OnDevice:
        def __init__(self, tensor):
            self.tensor = tensor

        def __reduce__(self):
            return _rebuild_npu_tensor, (self.tensor.storage(), 0, (2, 3), (3, 1), False, OrderedDict(), True)

    _rebuild_npu_tensor.__module__ = "torch_npu.utils.storage"
    _rebuild_npu_tensor.__qualname__ = "_rebuild_npu_tensor"
    sys.modules["torch_npu.utils.storage"]._rebuild_npu_tensor = _rebuild_npu_tensor
    for zipped in (False, True):
        path = str(tmp_path / ("npu%d.pth" % zipped))
        torch.save({"epoch": 1, "state_dict": {"a": OnDevice(torch.arange(6.))}}, path,
                   _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    for zipped in (False, True):
        found = checkpoint.read(str(tmp_path / ("npu%d.pth" % zipped)))["state_dict"]
        assert torch.equal(found["a"], torch.arange(6.).view(2, 3))


@pytest.mark.parametrize("zipped", [False, True])
def test_the_reader_for_old_pytorch_reads_what_pytorch_writes(zipped):
    shared = torch.arange(24.)
    content = {"views": [shared.view(4, 6).t(), shared[5:9]], "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5),
               "weight": torch.nn.Parameter(torch.ones(2)), "epoch": 3, "none": None, "text": ("a", True, 0.5),
               "state_dict": BMN(SMALL).state_dict(), "size": torch.Size([2, 3])}
    content.update((str(dtype), torch.arange(5).to(dtype)) for dtype in (
        torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool))
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    found = unpickling.load(buffer.getvalue())

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


# Another network

@pytest.mark.parametrize(("option", "value"), [("feat_dim", 12), ("num_sample", 5)])
def test_another_shape_names_tensor_and_option(tmp_path, option, value):
    torch.save({"epoch": 1, "state_dict": new_run(**{option: value})[0].state_dict()}, str(tmp_path / "x.pth"))
    sentence = refusal(checkpoint.load_network, str(tmp_path / "x.pth"), BMN(SMALL))
    tensor, there, here = {"feat_dim": ("x_1d_b.0.weight", "(256, 3, 3)", "(256, 2, 3)"),
                           "num_sample": ("x_3d_p.0.weight", "(512, 256, 5, 1, 1)", "(512, 256, 4, 1, 1)")}[option]
    for part in (str(tmp_path / "x.pth"), tensor, there, here, "--" + option):
        assert part in sentence


def test_another_temporal_scale_shows_in_the_mask(tmp_path, network):
    tensors = dict(network.state_dict(), sample_mask=torch.zeros(10, 400))
    torch.save({"epoch": 1, "state_dict": tensors}, str(tmp_path / "x.pth"))
    sentence = refusal(checkpoint.load_network, str(tmp_path / "x.pth"), BMN(SMALL))
    assert "sample_mask is (10, 400) there and (8, 256) here" in sentence and "--temporal_scale" in sentence


@pytest.mark.parametrize(("option", "value"), [("temporal_scale", 10), ("num_sample_perbin", 2),
                                               ("prop_boundary_ratio", 0.25)])
def test_options_that_no_shape_shows(written, option, value):
    sentence = refusal(checkpoint.load_network, written[0], BMN(dict(SMALL, **{option: value})))
    assert "--%s %s, and this is %s" % (option, SMALL[option], value) in sentence


def test_names_of_another_network(tmp_path, network):
    for tensors, expected in (
            ({name: tensor for name, tensor in network.state_dict().items() if "x_2d_p" not in name},
             "lacks x_2d_p.0.weight, x_2d_p.0.bias, x_2d_p.2.weight and 5 more"),
            (dict(network.state_dict(), other=torch.zeros(1)), "has the unknown other"),
            ({"fc.weight": torch.zeros(3)}, "lacks x_1d_b.0.weight")):
        torch.save(tensors, str(tmp_path / "x.pth"))
        assert expected in refusal(checkpoint.load_network, str(tmp_path / "x.pth"), BMN(SMALL))


# Damaged and foreign files

def damaged(content, generator):
    """``content`` cut, or with bits, bytes or a block changed; half the time near its beginning."""
    content = bytearray(content)

    def place():
        return generator.randrange(min(len(content), 4000) if generator.random() < 0.5 else len(content))

    kind = generator.choice(["cut", "bit", "bytes", "block"])
    if kind == "cut":
        return bytes(content[:place()])
    if kind == "bit":
        content[place()] ^= 1 << generator.randrange(8)
    elif kind == "bytes":
        for _ in range(5):
            content[place()] = generator.randrange(256)
    else:
        at = place()
        content[at:at + 64] = bytes(64)[:len(content) - at]
    return bytes(content)


def small_checkpoint(form):
    """The bytes of a checkpoint of few numbers, for quick fuzzing; (bytes, its state_dict)."""
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
    """A zip archive has checksums; the old format of others has none, so numbers may differ, but nothing worse."""
    if reader == "unpickling":
        monkeypatch.setattr(checkpoint, "_unpickled", _through(unpickling.load))
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


def _through(load):
    def read(path, content):
        try:
            return load(content)
        except Exception as error:
            raise checkpoint._damaged(path, checkpoint._first_line(error)) from None
    return read


class _Touch:
    """When unpickled by a reader that trusts it, makes a file."""

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


@pytest.mark.parametrize("name", ["bare pickle", "zip", "old", "in the header", "tar"])
def test_code_is_refused_and_not_run(tmp_path, name):
    canary = str(tmp_path / "ran")
    content = files_with_code(canary)[name]
    (tmp_path / "x.pth").write_bytes(content)
    sentence = refusal(checkpoint.read, str(tmp_path / "x.pth"))
    assert ("mkdir" in sentence and "could run code" in sentence) == (name in ("zip", "old", "in the header"))
    if name in ("zip", "old", "in the header"):
        with pytest.raises(pickle.UnpicklingError, match=r"GLOBAL .*mkdir"):
            unpickling.load(content)
    assert not os.path.exists(canary)


def test_attributes_are_not_set_on_what_the_old_reader_knows():
    evil = (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.")
    buffer = io.BytesIO(small_checkpoint("old")[0])
    pickles = [pickle.dumps(pickle.load(buffer), 2) for _ in range(3)]
    with pytest.raises(pickle.UnpicklingError, match="attributes"):
        unpickling.load(b"".join(pickles) + evil)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "x.pth"))
    assert "TorchScript" in refusal(checkpoint.read, str(tmp_path / "x.pth"))


@pytest.mark.parametrize("content", [3, [1, 2], "text", {}, {"state_dict": {}}, {"state_dict": 5}, {"epoch": 1},
                                     {"state_dict": {"a": 1.0}}, {"state_dict": {1: torch.ones(1)}},
                                     {"state_dict": {"a": torch.ones(2).long()}}, torch.ones(3)])
def test_another_content_is_refused(tmp_path, content):
    torch.save(content, str(tmp_path / "x.pth"))
    assert "is no checkpoint of this network" in refusal(checkpoint.read, str(tmp_path / "x.pth"))


def test_an_epoch_that_is_no_number(tmp_path, network):
    torch.save({"epoch": "many", "state_dict": network.state_dict()}, str(tmp_path / "x.pth"))
    assert "epoch is 'many'" in refusal(checkpoint.read, str(tmp_path / "x.pth"))


@pytest.mark.parametrize(("content", "expected"), [
    (b"", "is empty"), (b"PK\x03\x04 but no archive", "truncated or damaged"), (b"video,subset\n", "is no PyTorch"),
    (b"\x89HDF\r\n", "is no PyTorch")])
def test_foreign_bytes(tmp_path, content, expected):
    (tmp_path / "x.pth").write_bytes(content)
    assert expected in refusal(checkpoint.read, str(tmp_path / "x.pth"))


def test_a_zip_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(str(tmp_path / "x.pth"), "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "truncated or damaged" in refusal(checkpoint.read, str(tmp_path / "x.pth"))


def test_missing_and_unreadable(tmp_path):
    assert "does not exist" in refusal(checkpoint.read, str(tmp_path / "none.pth"))
    assert "cannot be read" in refusal(checkpoint.read, str(tmp_path))


# Writing

def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    path = str(tmp_path / "x.pth")
    checkpoint.save(path, {"epoch": 1, "state_dict": {"a": torch.ones(2)}})

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in refusal(checkpoint.save, path, {"state_dict": {"a": torch.zeros(2)}})
    assert checkpoint.read(path)["epoch"] == 1
    assert os.listdir(str(tmp_path)) == ["x.pth"]


LIMITED = """
import resource, signal, sys, torch
import checkpoint
from errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (4500, 1000, 0):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        checkpoint.save(sys.argv[1], {"epoch": 2, "state_dict": {"a": torch.ones(1000)}})
    except UserError as error:
        print(error)
"""


def test_a_file_that_cannot_grow(tmp_path, root):
    path = str(tmp_path / "x.pth")
    checkpoint.save(path, {"epoch": 1, "state_dict": {"a": torch.ones(2)}})
    done = subprocess.run([sys.executable, "-c", LIMITED, path], cwd=root, stdout=subprocess.PIPE, check=True, text=True)
    assert done.stdout.count("cannot write %s (File too large)" % path) == 3
    assert checkpoint.read(path)["epoch"] == 1
    assert os.listdir(str(tmp_path)) == ["x.pth"]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refusal(checkpoint.save, str(tmp_path / "file" / "x.pth"), {"state_dict": {}})


def test_a_folder_removed_in_between_is_made_again(tmp_path):
    path = str(tmp_path / "folder" / "x.pth")
    for epoch in (1, 2):
        checkpoint.save(path, {"epoch": epoch, "state_dict": {"a": torch.ones(2)}})
        assert checkpoint.read(path)["epoch"] == epoch
        os.remove(path)
        os.rmdir(os.path.dirname(path))


def test_leftovers_of_killed_runs_are_cleared_away_but_not_work_in_progress(tmp_path):
    old, fresh, other = (tmp_path / name for name in (".x.pth.abc.tmp", ".x.pth.def.tmp", ".y.pth.abc.tmp"))
    for leftover in (old, fresh, other):
        leftover.write_bytes(b"half a checkpoint")
    for leftover in (old, other):
        os.utime(str(leftover), (0, 0))
    checkpoint.save(str(tmp_path / "x.pth"), {"epoch": 1, "state_dict": {"a": torch.ones(2)}})
    assert sorted(os.listdir(str(tmp_path))) == [".x.pth.def.tmp", ".y.pth.abc.tmp", "x.pth"]
