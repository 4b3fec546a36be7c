"""The converter writes exactly the reference's form, and converts it back without a change."""
import hashlib
import json
import sys

import convert_checkpoint
import pytest
import torch

from bmn.errors import UserError
from bmn.training import checkpoint
from models import BMN

SMALL = {"temporal_scale": 20, "num_sample": 4, "num_sample_perbin": 3, "prop_boundary_ratio": 0.5, "feat_dim": 8}

pytestmark = pytest.mark.filterwarnings("ignore:.*weights_only")      # some versions warn of a plain torch.load


@pytest.fixture
def convert(monkeypatch, capsys):
    """convert("in", "out", "--to", ...), as from the command line. Returns what it printed."""
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py"] + [str(argument) for argument in arguments])
        convert_checkpoint.main(convert_checkpoint.parse_arguments())
        return capsys.readouterr().out
    return run


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return BMN(SMALL)


@pytest.fixture
def ours(tmp_path, network):
    path = str(tmp_path / "ours.pth.tar")
    checkpoint.save(path, {"epoch": 7, "state_dict": network.state_dict(), "options": SMALL, "optimizer": {}})
    return path


def test_a_checkpoint_is_converted_there_and_back(tmp_path, convert, ours, network):
    printed = convert(ours, tmp_path / "reference.pth.tar", "--to", "reference")
    assert "the reference's form, epoch 7" in printed and "--temporal_scale 20" in printed
    content = torch.load(str(tmp_path / "reference.pth.tar"))
    assert sorted(content) == ["epoch", "state_dict"] and content["epoch"] == 7
    names = ["module." + name for name in list(network.state_dict()) + ["sample_mask"]]
    assert list(content["state_dict"]) == names
    assert content["state_dict"]["module.sample_mask"].shape == (20, 4 * 20 * 20)
    assert content["state_dict"]["module.sample_mask"].dtype == torch.float32

    convert(tmp_path / "reference.pth.tar", tmp_path / "back.pth.tar", "--to", "ours", "--num_sample_perbin", 3)
    back = checkpoint.read(str(tmp_path / "back.pth.tar"))
    assert (back["epoch"], "optimizer" in back) == (7, False)
    assert back["options"] == dict(SMALL, layout="reference", max_duration=0, window=0, window_subsample=1)
    assert all(torch.equal(back["state_dict"][name], tensor) for name, tensor in network.state_dict().items())


def test_the_mask_equals_the_reference(tmp_path, convert, golden):
    known = golden("model_t20_mask.npz")
    options = json.loads(str(known["options"]))
    checkpoint.save(str(tmp_path / "x"), {"epoch": 1, "state_dict": BMN(options).state_dict(), "options": options})
    convert(tmp_path / "x", tmp_path / "reference", "--to", "reference")
    mask = torch.load(str(tmp_path / "reference"))["state_dict"]["module.sample_mask"].numpy()
    assert hashlib.sha256(mask.tobytes()).hexdigest() == str(known["sha256"])


def test_half_precision_is_written_and_read(tmp_path, convert, ours, network):
    for form in ("reference", "ours"):
        convert(ours, tmp_path / form, "--to", form, "--half")
        tensors = torch.load(str(tmp_path / form))["state_dict"]
        assert {str(tensor.dtype) for name, tensor in tensors.items() if "mask" not in name} == {"torch.float16"}
        model = BMN(SMALL)
        checkpoint.put_network(checkpoint.read(str(tmp_path / form)), model)
        assert all(torch.equal(model.state_dict()[name], tensor.half().float())
                   for name, tensor in network.state_dict().items())


def test_half_precision_that_would_overflow_is_refused(tmp_path, convert, network):
    tensors = dict(network.state_dict(), **{"x_1d_p.0.bias": torch.full((256,), 1e6)})
    checkpoint.save(str(tmp_path / "x"), {"epoch": 1, "state_dict": tensors, "options": SMALL})
    with pytest.raises(UserError, match=r"x_1d_p\.0\.bias has values above"):
        convert(tmp_path / "x", tmp_path / "y", "--to", "ours", "--half")


def test_options_that_contradict_the_file_are_refused(tmp_path, convert, ours):
    with pytest.raises(UserError, match=r"--temporal_scale 10 is given, but .* was made with 20"):
        convert(ours, tmp_path / "y", "--to", "ours", "--temporal_scale", 10)
    convert(ours, tmp_path / "reference", "--to", "reference")
    with pytest.raises(UserError, match=r"--prop_boundary_ratio 0.25 is given, but .* was made with 0.5"):
        convert(tmp_path / "reference", tmp_path / "y", "--to", "ours", "--prop_boundary_ratio", 0.25)
    assert not (tmp_path / "y").exists()


def test_another_network_is_refused(tmp_path, convert):
    torch.save({"fc.weight": torch.zeros(3)}, str(tmp_path / "x"))
    with pytest.raises(UserError, match="lacks"):
        convert(tmp_path / "x", tmp_path / "y", "--to", "reference")


def test_a_longest_duration_has_no_place_in_the_reference_s_form(tmp_path, convert, network):
    path, options = str(tmp_path / "short"), dict(SMALL, max_duration=5)
    checkpoint.save(path, {"epoch": 1, "state_dict": BMN(options).state_dict(), "options": options, "optimizer": {}})
    with pytest.raises(UserError, match="has no longest duration, but this network has --max_duration 5: give --to ou"):
        convert(path, tmp_path / "y", "--to", "reference")
    convert(path, tmp_path / "y", "--to", "ours")
    assert checkpoint.read(str(tmp_path / "y"))["options"]["max_duration"] == 5
