"""ONNX: an exported file computes what PyTorch computes, is small, and can be used instead of the network."""
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from bmn.errors import UserError
from bmn.training import checkpoint
from models import BMN

onnx = pytest.importorskip("onnx", reason="needs the Python package onnx")
pytest.importorskip("onnxruntime", reason="needs the Python package onnxruntime")
import export_onnx  # noqa: E402

from bmn.machine.device import TORCH  # noqa: E402
from bmn.network import onnx_network  # noqa: E402

HAS_NEW = TORCH >= export_onnx.NEW_SINCE
EXPORTS = [("old", 11), ("old", 13)] + [
    pytest.param("new", opset, marks=pytest.mark.skipif(not HAS_NEW, reason="this PyTorch has no new exporter"))
    for opset in (11, 12, 13, 14, 18)]
SMALL = {"temporal_scale": 12, "num_sample": 4, "num_sample_perbin": 3, "prop_boundary_ratio": 0.5, "feat_dim": 8}


def make_network(**options):
    """A network whose outputs are far from 0.5 and far apart, because its last layers are steep."""
    torch.manual_seed(4)
    network = BMN(dict(SMALL, **options)).eval()
    with torch.no_grad():
        for layer in (network.x_2d_p[6], network.x_1d_s[2], network.x_1d_e[2]):
            layer.weight.mul_(30)
    return network


@pytest.fixture(scope="module")
def network():
    return make_network()


def difference(network, path, batch):
    x = torch.rand(batch, network.feat_dim, network.temporal_scale)
    with torch.no_grad():
        expected = network(x)
    assert float(expected[0].std()) > 0.02       # equal outputs would prove nothing
    return max(float((one - other).abs().max()) for one, other in zip(onnx_network.OnnxNetwork(path)(x), expected))


@pytest.mark.parametrize(("exporter", "opset"), EXPORTS)
@pytest.mark.parametrize("batch", [0, 1, 8])
def test_an_exported_file_computes_what_pytorch_computes(tmp_path, network, exporter, opset, batch):
    path = str(tmp_path / "bmn.onnx")
    export_onnx.export(network, path, batch, opset, exporter)
    for size in ([batch] if batch else [1, 8, 3]):
        assert difference(network, path, size) < 1e-5

    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert model.opset_import[0].version == opset
    if exporter == "new":
        assert model.ir_version == onnx.helper.find_min_ir_version_for(model.opset_import)      # for old readers
        assert ROOT.encode() not in Path(path).read_bytes() and b"torch/" not in Path(path).read_bytes()
    image, = model.graph.input
    shape = [axis.dim_value or axis.dim_param for axis in image.type.tensor_type.shape.dim]
    assert (image.name, shape) == ("image", [batch or "batch", 8, 12])
    assert [output.name for output in model.graph.output] == ["confidence_map", "start", "end"]
    assert network.boundary_matching(torch.zeros(12 * 4, 512), torch.zeros(512)).shape == (79, 512)    # unchanged


@pytest.mark.parametrize("options", [
    {"temporal_scale": 20, "num_sample": 8}, {"num_sample_perbin": 1}, {"num_sample": 1, "num_sample_perbin": 2},
    {"prop_boundary_ratio": 0.0}, {"prop_boundary_ratio": 0.3, "temporal_scale": 9}, {"prop_boundary_ratio": 2.0},
    {"temporal_scale": 2}, {"layout": "mmaction2"}, {"layout": "opentad", "max_duration": 5, "num_sample_perbin": 2},
    {"layout": "reference2019", "prop_boundary_ratio": 0.3, "temporal_scale": 9}])
def test_sampling_weights_are_rebuilt_in_the_graph(options):
    """Runs only the nodes that make the weights."""
    import onnxruntime
    network = make_network(**options)
    weights = export_onnx.sampling_matrix(network)
    graph = onnx.helper.make_graph(
        [], "g", [onnx.helper.make_tensor_value_info("sampling", onnx.TensorProto.FLOAT, weights.shape)],
        [onnx.helper.make_tensor_value_info("sampling", onnx.TensorProto.FLOAT, weights.shape)])
    export_onnx.rebuild_sampling(graph, network, weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 11)], ir_version=7)
    found, = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})
    assert np.abs(found - weights).max() < 5e-7


def test_the_file_holds_little_more_than_the_network(tmp_path):
    network = make_network(temporal_scale=100, num_sample=32)
    path = str(tmp_path / "bmn.onnx")
    export_onnx.export(network, path, 1, 11, "old")
    parameters = sum(4 * tensor.numel() for tensor in network.parameters())
    size = (tmp_path / "bmn.onnx").stat().st_size
    assert size < parameters + 1e6, "%.1f MB for %.1f MB of parameters" % (size / 1e6, parameters / 1e6)
    assert difference(network, path, 1) < 1e-5


@pytest.mark.parametrize(("exporter", "opset"), [EXPORTS[0], EXPORTS[2]])
@pytest.mark.parametrize("options", [{"layout": "mmaction2"}, {"layout": "opentad", "max_duration": 7}])
def test_a_network_of_another_layout_is_exported_and_served_in_it(tmp_path, exporter, opset, options):
    network, path = make_network(**options), str(tmp_path / "bmn.onnx")
    export_onnx.export(network, path, 0, opset, exporter)
    x = torch.rand(3, 8, 12)
    served = onnx_network.OnnxNetwork(path, network.layout, network.max_duration)
    for one, other in zip(served(x), network(x)):
        assert float((one - other).detach().abs().max()) < 1e-5
    assert "is a network of --layout %s, but here it is reference" % network.layout in refusal(
        onnx_network.OnnxNetwork, path)
    if network.max_duration:
        assert "--max_duration 7, but here it is 6" in refusal(onnx_network.OnnxNetwork, path, "opentad", 6)


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("declared", [True, False])
def test_outputs_of_another_length_are_refused(tmp_path, network, batch, declared):
    """The maps are cut to 10 of 12 positions, as if the file had been put together from two exports."""
    path = str(tmp_path / "bmn.onnx")
    export_onnx.export(network, path, batch, 11, "old")
    model = onnx.load(path)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.int64([value]), name)
                                   for name, value in (("zero", 0), ("ten", 10), ("last", -1)))
    for output in model.graph.output:
        for node in model.graph.node:
            node.output[:] = [name + "_whole" if name == output.name else name for name in node.output]
        model.graph.node.append(onnx.helper.make_node("Slice", [output.name + "_whole", "zero", "ten", "last"],
                                                      [output.name]))
        shape = output.type.tensor_type.shape.dim[-1]
        if declared:
            shape.dim_value = 10
        else:
            shape.dim_param = output.name + "_length"
    onnx.save(model, path)
    sentence = refusal(lambda: onnx_network.OnnxNetwork(path)(torch.rand(2, 8, 12)))
    assert "gives confidence_map of shape [2, 12, 10] for a video, but [2, 12, 12] is needed" in sentence


def test_outputs_are_also_looked_at_when_they_come(tmp_path, network):
    export_onnx.export(network, str(tmp_path / "bmn.onnx"), 0, 11, "old")
    served = onnx_network.OnnxNetwork(str(tmp_path / "bmn.onnx"))
    whole = served._run(np.zeros((2, 8, 12), np.float32), 2)
    served._run = lambda x, size: [whole[0], whole[1], whole[2][:, :11]]
    assert "gives end of shape [11] for a video, but [12] is needed" in refusal(served, torch.zeros(2, 8, 12))


def test_an_exported_file_runs_on_the_cpu_alone(tmp_path, network, monkeypatch):
    """Whatever else onnxruntime was built with, which would round in another way."""
    import onnxruntime
    asked, session = [], onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **more: asked.append(more) or session(
        *args, **more))
    export_onnx.export(network, str(tmp_path / "bmn.onnx"), 0, 11, "old")
    onnx_network.OnnxNetwork(str(tmp_path / "bmn.onnx"))
    assert [one["providers"] for one in asked] == [["CPUExecutionProvider"]]


def test_a_fixed_batch_serves_any_number_of_videos(tmp_path, network):
    path = str(tmp_path / "bmn.onnx")
    export_onnx.export(network, path, 3, 11, "old")
    for videos in (1, 3, 7):
        assert difference(network, path, videos) < 1e-5
    confidence_map = onnx_network.OnnxNetwork(path).eval()(torch.rand(2, 8, 12), valid_only=True)[0]
    assert torch.equal(confidence_map, torch.triu(confidence_map)) and confidence_map.any()


@pytest.fixture
def command(tmp_path, network, monkeypatch):
    """Runs tools/export_onnx.py from x.pth.tar to x.onnx, with the arguments given."""
    checkpoint.save(str(tmp_path / "x.pth.tar"), {"epoch": 1, "state_dict": network.state_dict(), "options": SMALL})

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["export_onnx.py", str(tmp_path / "x.pth.tar"), str(tmp_path / "x.onnx")]
                            + list(arguments))
        export_onnx.main(export_onnx.parse_arguments())
    return run


def test_the_command_line_exports_and_checks_a_file(tmp_path, network, command, capsys):
    command("--batch", "0")
    printed = capsys.readouterr().out
    assert "valid ONNX, opset 11, batch open" in printed and "at batch 8: " in printed
    assert difference(network, str(tmp_path / "x.onnx"), 2) < 1e-5


def refusal(action, *arguments):
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_onnx_file_refuses_features_of_another_shape(tmp_path, network):
    export_onnx.export(network, str(tmp_path / "bmn.onnx"), 0, 11, "old")
    served = onnx_network.OnnxNetwork(str(tmp_path / "bmn.onnx"))
    assert "needs features [videos, 8, 12], but these are [2, 8, 13]" in refusal(served, torch.rand(2, 8, 13))


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "x.onnx").write_text("no network")
    assert "cannot be loaded" in refusal(onnx_network.OnnxNetwork, str(tmp_path / "x.onnx"))
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [
        onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 11)], ir_version=7),
              str(tmp_path / "x.onnx"))
    sentence = refusal(onnx_network.OnnxNetwork, str(tmp_path / "x.onnx"))
    assert "outputs ['y tensor(float) [1]'], but it must have" in sentence


def test_outputs_of_other_dimensions_are_refused(tmp_path, network):
    path = str(tmp_path / "bmn.onnx")
    export_onnx.export(network, path, 1, 11, "old")
    model = onnx.load(path)
    names = {"start": "confidence_map", "confidence_map": "start"}
    for one in list(model.graph.output) + list(model.graph.node):
        if isinstance(one, onnx.NodeProto):
            one.output[:] = [names.get(name, name) for name in one.output]
        else:
            one.name = names.get(one.name, one.name)
    onnx.save(model, path)
    assert "with these numbers of dimensions" in refusal(onnx_network.OnnxNetwork, path)


@pytest.mark.parametrize("exporter", ["old"] + ["new"] * HAS_NEW)
def test_the_documentation_lists_the_operators(tmp_path, exporter):
    """A converter must know each of them."""
    with open(os.path.join(ROOT, "docs", "npu.md"), encoding="utf-8") as handle:
        text = " ".join(handle.read().split())
    new, *old = (set(re.split(", | and ", names)) for names in re.search(
        r"these operators and no others, [^:]*: (.*?)\. The old one adds (.*?), and for an open batch (.*?)\. ",
        text).groups())
    network, path = BMN({}).eval(), str(tmp_path / "bmn.onnx")
    for batch in (1, 0):
        export_onnx.export(network, path, batch, 11, exporter)
        wanted = new if exporter == "new" else new.union(*old[:1 if batch else 2])
        assert {node.op_type for node in onnx.load(path).graph.node} == wanted


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, command, monkeypatch):
    run = onnx_network.OnnxNetwork._run
    for wrong in (1e-3, float("nan")):
        monkeypatch.setattr(onnx_network.OnnxNetwork, "_run",
                            lambda *args, wrong=wrong: [run(*args)[0], run(*args)[1], run(*args)[2] + wrong])
        assert "would differ" in refusal(command)
        assert os.listdir(str(tmp_path)) == ["x.pth.tar"]


def test_a_missing_package_is_named(tmp_path, network, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "--onnx needs the Python package onnxruntime" in refusal(onnx_network.OnnxNetwork, str(tmp_path / "x.onnx"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install onnx" in refusal(export_onnx.export, network, str(tmp_path / "x.onnx"), 1, 11, "old")


@pytest.mark.parametrize(("opset", "exporter"), [("3", "old"), ("10", "new"), ("60", "auto")])
def test_an_opset_that_cannot_be_exported_is_refused(tmp_path, command, opset, exporter):
    assert "--opset" in refusal(command, "--opset", opset, "--exporter", exporter)
    assert os.listdir(str(tmp_path)) == ["x.pth.tar"]
