"""Checkpoints: what we write, every accepted form, networks that do not fit, and writing to a disk that fails."""
import errno
import os
import subprocess
import sys
import tempfile
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch

from bmn.errors import UserError
from bmn.options import with_defaults
from bmn.training import checkpoint
from models import BMN

SMALL = {"temporal_scale": 8, "num_sample": 4, "num_sample_perbin": 3, "prop_boundary_ratio": 0.5, "feat_dim": 8}
OPTIONS = with_defaults(dict(SMALL, step_size=2))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    return BMN(SMALL)


@pytest.fixture(scope="module")
def written(tmp_path_factory, network):
    """A checkpoint that we wrote."""
    path = str(tmp_path_factory.mktemp("written") / checkpoint.LAST)
    checkpoint.save(path, {"epoch": 3, "state_dict": network.state_dict(), "options": OPTIONS})
    return path


def refusal(action, *arguments):
    """The one sentence of the refusal."""
    with pytest.raises(UserError) as caught:
        action(*arguments)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 400
    return sentence


def load_network(path, model):
    """Returns what the checkpoint holds."""
    state = checkpoint.read(path)
    checkpoint.put_network(state, model)
    return state


def test_a_checkpoint_that_was_changed_and_saved_again_is_read(written, tmp_path, network):
    state = torch.load(written)
    del state["epoch"]
    torch.save(state, str(tmp_path / "slim.pth.tar"), **zipped(True))
    for name, tensor in load_network(str(tmp_path / "slim.pth.tar"), BMN(SMALL))["state_dict"].items():
        assert torch.equal(tensor, network.state_dict()[name])
    torch.save(state, str(tmp_path / "old.pth.tar"), **zipped(False))
    assert "lacks its SHA-256: it is truncated, or was saved again" in refusal(
        checkpoint.read, str(tmp_path / "old.pth.tar"))


def zipped(new):
    """Arguments of torch.save for its present format, or its old one."""
    return {"_use_new_zipfile_serialization": new}


def same(found, wanted):
    return list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


# What we write

@pytest.mark.filterwarnings("ignore:.*weights_only")      # some versions warn of that
def test_anyone_reads_our_file_with_plain_torch_load(written):
    loaded = torch.load(written)
    assert loaded["epoch"] == 3
    assert list(loaded["state_dict"]) == list(BMN(SMALL).state_dict())
    assert {type(tensor) for tensor in loaded["state_dict"].values()} == {torch.Tensor}


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
        tensors[prefix + "sample_mask"] = torch.nn.Parameter(torch.ones(8, 4 * 8 * 8), requires_grad=False)
    path = str(tmp_path / "x.pth")
    torch.save(tensors if bare else {"epoch": 9, "state_dict": tensors}, path, _use_new_zipfile_serialization=zipped)
    model = BMN(SMALL)
    state = load_network(path, model)
    assert (state["epoch"], state["path"]) == (0 if bare else 9, path)
    assert set(state) == {"epoch", "path", "state_dict"}
    assert same(model.state_dict(), network.state_dict())


def test_half_precision_is_cast(tmp_path, network):
    half = OrderedDict((name, tensor.half()) for name, tensor in network.state_dict().items())
    torch.save({"epoch": 1, "state_dict": half}, str(tmp_path / "half.pth"))
    model = BMN(SMALL)
    load_network(str(tmp_path / "half.pth"), model)
    assert same(model.state_dict(), {name: tensor.float() for name, tensor in half.items()})


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_tensors_that_an_npu_wrote_are_read(tmp_path, monkeypatch):
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


# Another network

@pytest.mark.parametrize(("option", "value"), [("feat_dim", 12), ("num_sample", 5)])
def test_a_tensor_of_another_shape_is_named_with_its_option(tmp_path, option, value):
    torch.save({"epoch": 1, "state_dict": BMN(dict(SMALL, **{option: value})).state_dict()}, str(tmp_path / "x.pth"))
    sentence = refusal(load_network, str(tmp_path / "x.pth"), BMN(SMALL))
    tensor, there, here = {"feat_dim": ("x_1d_b.0.weight", "(256, 3, 3)", "(256, 2, 3)"),
                           "num_sample": ("x_3d_p.0.weight", "(512, 256, 5, 1, 1)", "(512, 256, 4, 1, 1)")}[option]
    for part in (str(tmp_path / "x.pth"), tensor, there, here, "--" + option):
        assert part in sentence


def test_another_temporal_scale_shows_in_the_mask(tmp_path, network):
    tensors = dict(network.state_dict(), sample_mask=torch.zeros(10, 400))
    torch.save({"epoch": 1, "state_dict": tensors}, str(tmp_path / "x.pth"))
    sentence = refusal(load_network, str(tmp_path / "x.pth"), BMN(SMALL))
    assert "sample_mask is (10, 400) there and (8, 256) here" in sentence and "--temporal_scale" in sentence


@pytest.mark.parametrize(("option", "value"), [("temporal_scale", 10), ("num_sample_perbin", 2),
                                               ("prop_boundary_ratio", 0.25)])
def test_options_that_no_shape_shows_are_compared(written, option, value):
    sentence = refusal(load_network, written, BMN(dict(SMALL, **{option: value})))
    assert "--%s %s, but here it is %s" % (option, SMALL[option], value) in sentence


def test_names_of_another_network_are_refused(tmp_path, network):
    for tensors, expected in (
            ({name: tensor for name, tensor in network.state_dict().items() if "x_2d_p" not in name},
             "lacks x_2d_p.0.weight, x_2d_p.0.bias, x_2d_p.2.weight and 5 more"),
            (dict(network.state_dict(), other=torch.zeros(1)), "has the unknown other"),
            ({"fc.weight": torch.zeros(3)}, "lacks x_1d_b.0.weight")):
        torch.save(tensors, str(tmp_path / "x.pth"))
        assert expected in refusal(load_network, str(tmp_path / "x.pth"), BMN(SMALL))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, network, rng, number):
    """A single number is enough, in a tensor of one or of many."""
    for broken in ("x_1d_e.2.bias", *rng.choice(list(network.state_dict()), 3)):
        tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        tensors[broken].view(-1)[rng.randint(tensors[broken].numel())] = number
        torch.save(tensors, str(tmp_path / "x.pth"))
        sentence = refusal(load_network, str(tmp_path / "x.pth"), BMN(SMALL))
        assert "not finite (in %s)" % broken in sentence and str(tmp_path / "x.pth") in sentence


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
from bmn.training import checkpoint
from bmn.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (4500, 1000, 0):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        checkpoint.save(sys.argv[1], {"epoch": 2, "state_dict": {"a": torch.ones(1000)}})
    except UserError as error:
        print(error)
"""


def test_a_limit_on_the_file_size_leaves_the_previous_checkpoint(tmp_path, root):
    path = str(tmp_path / "x.pth")
    checkpoint.save(path, {"epoch": 1, "state_dict": {"a": torch.ones(2)}})
    done = subprocess.run([sys.executable, "-c", LIMITED, path], cwd=root, stdout=subprocess.PIPE, check=True,
                          text=True)
    assert done.stdout.count("cannot write %s (File too large)" % path) == 3
    assert checkpoint.read(path)["epoch"] == 1
    assert os.listdir(str(tmp_path)) == ["x.pth"]


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refusal(checkpoint.save, str(tmp_path / "file" / "x.pth"), {"state_dict": {}})


READ_ONLY = """
import os, sys, torch
from bmn.training import checkpoint
from bmn.errors import UserError
if os.getuid() == 0:
    os.setuid(65534)        # permissions do not bind root
try:
    checkpoint.save(sys.argv[1], {"epoch": 2, "state_dict": {"a": torch.ones(2)}})
except UserError as error:
    print(error)
"""


def test_a_read_only_folder_is_reported(root):
    with tempfile.TemporaryDirectory() as folder:       # pytest's own cannot be entered by another user
        os.chmod(folder, 0o755)
        path = os.path.join(folder, "x.pth")
        checkpoint.save(path, {"epoch": 1, "state_dict": {"a": torch.ones(2)}})
        os.chmod(folder, 0o555)
        done = subprocess.run([sys.executable, "-c", READ_ONLY, path], cwd=root, stdout=subprocess.PIPE, check=True,
                              text=True)
        assert done.stdout.startswith("cannot write %s (Permission denied)" % path)
        assert checkpoint.read(path)["epoch"] == 1 and os.listdir(folder) == ["x.pth"]
        os.chmod(folder, 0o755)


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
