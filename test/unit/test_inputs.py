"""Whatever a path names, it is a regular file or it is refused in a sentence, at once."""
import os
import socket

import numpy as np
import pytest

from bmn import inputs
from bmn.data.annotation_files import read_video_list
from bmn.data.features import open_source
from bmn.data.packed_features import PackedFeatures
from bmn.errors import UserError
from bmn.files import read_json
from bmn.inputs import check_input, check_size, open_text, read_bytes
from bmn.network.onnx_network import OnnxNetwork
from bmn.results.score_tables import read_table
from bmn.training import checkpoint


@pytest.fixture(params=["a folder", "a pipe", "a socket", "a device", "nothing"])
def odd(request, tmp_path):
    """(path of something that is no file, what the sentence calls it)"""
    path = str(tmp_path / "odd")
    if request.param == "a folder":
        os.mkdir(path)
    elif request.param == "a pipe":
        os.mkfifo(path)
    elif request.param == "a socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
    elif request.param == "a device":
        path = "/dev/zero"
    return path, "does not exist" if request.param == "nothing" else "is %s and not a file" % request.param


READERS = {
    "checkpoint": checkpoint.read, "json": lambda path: read_json(path, "file"), "video list": read_video_list,
    "packed": lambda path: PackedFeatures(path, 10, 8), "table": read_table,
    "bytes": lambda path: read_bytes(path, "x"),
    "check": lambda path: check_input(path, "--x"), "onnx": OnnxNetwork}


@pytest.mark.parametrize("reader", sorted(READERS))
def test_only_regular_files_are_opened(odd, reader):
    if reader == "onnx":
        pytest.importorskip("onnxruntime")
    with pytest.raises(UserError) as error:
        READERS[reader](odd[0])
    assert odd[0] in str(error.value) and odd[1] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [".csv", ".npy", ".npz", ".pt", ".pkl"])
def test_a_pipe_in_the_place_of_a_feature_file_is_refused(tmp_path, kind):
    os.mkfifo(str(tmp_path / ("v_a" + kind)))
    source = open_source({"data_path": str(tmp_path), "temporal_scale": 10, "feat_dim": 8})
    with pytest.raises(UserError, match="is a pipe and not a file"):
        source.read("v_a")
    assert source.remark("v_a") is None


def test_a_device_in_the_place_of_the_features_is_refused():
    with pytest.raises(UserError, match="--data_path /dev/zero is a device"):
        open_source({"data_path": "/dev/zero", "temporal_scale": 10, "feat_dim": 8})


def test_a_file_above_the_memory_is_not_read(tmp_path, monkeypatch):
    path = str(tmp_path / "huge")
    with open(path, "wb") as handle:
        handle.truncate(1 << 20)
    monkeypatch.setattr(inputs, "_memory", lambda: 1 << 19)
    for reader in ("checkpoint", "json", "video list", "bytes"):
        with pytest.raises(UserError, match=r"huge needs .* GB, more than the"):
            READERS[reader](path)
    check_size(1 << 19, "x")
    monkeypatch.setattr(inputs, "_memory", lambda: None)
    assert len(read_bytes(path, "x")) == 1 << 20


def test_files_whose_names_are_odd_are_read(tmp_path):
    for name in (b"\xff\xfe.csv", "\u4e2d \u2603.csv".encode(), b"a\nb.csv"):
        path = os.fsdecode(os.path.join(os.fsencode(str(tmp_path)), name))
        with open(path, "w") as handle:
            handle.write("video,subset\nv_a,training\n")
        assert read_video_list(path) == [("v_a", "training", "")]
    with pytest.raises(UserError, match="cannot be read"):
        read_bytes(str(tmp_path) + "/a\0b", "file")


def test_text_and_its_errors_stay_those_of_the_reader(tmp_path):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfa,b\r\n")
    with open_text(str(tmp_path / "x"), "file") as handle:
        assert handle.read() == "a,b\r\n"
    with pytest.raises(ZeroDivisionError), open_text(str(tmp_path / "x"), "file"):
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="mine") as error, open_text(str(tmp_path / "x"), "file"):
        raise ValueError("mine")
    assert not isinstance(error.value, UserError)


def test_an_npz_file_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(str(tmp_path / "v_a.npz"), np.zeros((1000, 1000)))
    monkeypatch.setattr(inputs, "_memory", lambda: 1 << 20)
    source = open_source({"data_path": str(tmp_path), "temporal_scale": 10, "feat_dim": 8})
    with pytest.raises(UserError, match=r"unpacked, needs .* GB"):
        source.read("v_a")
