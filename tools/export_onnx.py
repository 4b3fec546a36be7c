"""Write the network as ONNX in the form that Ascend's offline inference expects: image -> confidence_map, start, end.

    python3 tools/export_onnx.py checkpoint/BMN_best.pth.tar bmn_bs1.onnx --batch 1
    python3 tools/export_onnx.py checkpoint/BMN_best.pth.tar bmn.onnx --batch 0          # any batch

The sampling weights of the BM layer, 65 MB as a matrix, are not in the file. Twelve nodes compute them from 0.8 MB of
constants, once, when the file is loaded. Before the file gets its name, onnx.checker checks it, and its outputs in
onnxruntime are compared with PyTorch's.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bmn.errors import command_line, run_as_program
from bmn.options import DEFAULTS, INDEX, INPUT_OPTIONS, OPTIONS, RECORDED_OPTIONS, Parser


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="any checkpoint of this network")
    parser.add_argument("target", help="file to write")
    parser.add_argument("--batch", type=INDEX, default=1, help="videos at once; 0: any number (default: 1)")
    parser.add_argument("--opset", type=int, default=11, help="version of ONNX's operators (default: 11)")
    parser.add_argument("--exporter", choices=("auto", "old", "new"), default="auto",
                        help="old: TorchScript; new: torch.export; auto: new, where PyTorch and onnxscript have it "
                             "(default: auto)")
    parser.add_argument("--ema", **OPTIONS["ema"].check,
                        help="1: take the averaged (EMA) weights of the checkpoint, where it has them (default: 0)")
    for name in RECORDED_OPTIONS:
        parser.add_argument("--" + name, **OPTIONS[name].check,
                            help="where the checkpoint does not say it (default: %s)" % DEFAULTS[name])
    return parser.parse_args()


if __name__ == "__main__":      # before the imports that take seconds
    ARGUMENTS = command_line(parse_arguments)

from bmn.machine import device  # isort: skip  (before torch)
import importlib.util
import inspect
import logging
import warnings
from typing import Any, Dict, Iterable, Optional

import numpy as np
import torch

from bmn.errors import UserError, first_line
from bmn.files import check_outputs, replacing
from bmn.layouts import LAYOUTS
from bmn.network import onnx_network
from bmn.sampling import proposals, sampling_weights
from bmn.training import checkpoint, recorded
from models import BMN

TOLERANCE = 1e-5
NEW_SINCE = (2, 9)      # before that, the new exporter leaves functions of its own in the file
LOWEST_NEW = 18         # the lowest opset that the new exporter writes
OUTPUTS = list(onnx_network.OUTPUTS)


class GivenSampling:
    """Replaces BoundaryMatching during an export: the dense product with ``weights`` [P + 1, T*N] that it is given."""

    def __init__(self, weights: torch.Tensor):
        self.weights = weights

    def uses_bags(self, table: torch.Tensor) -> bool:
        return False

    def __call__(self, table: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.matmul(self.weights, table) + bias


class WithSampling(torch.nn.Module):
    """The network with its sampling weights as a second input, so that no exporter can store them in the file."""

    def __init__(self, network: BMN):
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor, sampling: torch.Tensor) -> tuple:
        self.network.boundary_matching = GivenSampling(sampling)
        return self.network(image)


def export(network: BMN, path: str, batch: int, opset: int, exporter: str, shown: Optional[Dict[str, int]] = None
           ) -> None:
    """Write ``network`` (on the CPU, in evaluation mode) to ``path``.

    Args:
        network: its ``boundary_matching`` is replaced during the export.
        path: the file.
        batch: number of videos in a batch; 0 leaves it open.
        opset: version of ONNX's operators.
        exporter: "old" (TorchScript, which newer PyTorch warns of), "new" (torch.export, from PyTorch 2.9 on), or
            "auto": the new one where PyTorch has it and onnxscript is installed.
        shown: what the network is shown (options.INPUT_OPTIONS), for the metadata of the file.

    Raises:
        UserError: a package is missing, this PyTorch does not have the exporter, or the exporter cannot write this
            opset. Then ``path`` may be incomplete.
    """
    onnx = onnx_network.import_or_say("onnx", "tools/export_onnx.py")
    has_new = device.TORCH >= NEW_SINCE
    if exporter == "auto":
        exporter = "new" if has_new and importlib.util.find_spec("onnxscript") else "old"
    if exporter == "new" and opset < 11:
        raise UserError("--opset %d is not written by the new exporter: give 11 or later, or --exporter old" % opset)
    if exporter == "new" and not has_new:
        raise UserError("--exporter new needs PyTorch %d.%d or later, but this is %s: give --exporter old"
                        % (*NEW_SINCE, torch.__version__))
    weights = sampling_matrix(network)
    kept, network.boundary_matching = network.boundary_matching, None
    how = {"input_names": ["image", "sampling"], "output_names": OUTPUTS, "opset_version": opset}
    if exporter == "new":
        onnx_network.import_or_say("onnxscript", "--exporter new")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        how.update(dynamo=True, external_data=False, verbose=False, opset_version=max(opset, LOWEST_NEW))
        if batch == 0:
            how["dynamic_shapes"] = {"image": {0: torch.export.Dim("batch")}, "sampling": None}
    else:
        how.update({"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {})
        if batch == 0:
            how["dynamic_axes"] = {name: {0: "batch"} for name in ["image"] + OUTPUTS}
    image = torch.rand(batch or 2, network.feat_dim, network.temporal_scale)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # about deprecations, and about shape checks that a trace leaves out
            torch.onnx.export(WithSampling(network), (image, torch.from_numpy(weights)), path, **how)
    except (RuntimeError, ValueError) as error:
        raise UserError("the %s exporter of PyTorch %s cannot write opset %d (%s): try another --opset or --exporter"
                        % (exporter, torch.__version__, opset, first_line(error))) from error
    finally:
        network.boundary_matching = kept
    model = onnx.load(path)
    if model.opset_import[0].version != how["opset_version"]:       # PyTorch only warns
        raise UserError("the %s exporter of PyTorch %s wrote opset %d instead of %d: give another --opset"
                        % (exporter, torch.__version__, model.opset_import[0].version, opset))
    if exporter == "new":
        lower(model, opset)
    rebuild_sampling(model.graph, network, weights)
    onnx.helper.set_model_props(model, dict({name: str(value) for name, value in (shown or {}).items()},
                                            layout=network.layout, max_duration=str(network.max_duration)))
    onnx.checker.check_model(model)
    onnx.save(model, path)


def lower(model: Any, opset: int) -> None:
    """Turn a graph of the new exporter, which writes opset 18 and later, into one of ``opset``, from 11 on.

    onnx's own converter stops at opset 14. Of the operators in this graph two were written otherwise before that. The
    file's own version goes down as well, and without the exporter's notes, which name files of this machine.
    """
    from onnx import helper, numpy_helper
    constants = {constant.name: constant for constant in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Squeeze" and opset < 13:            # its axes were an attribute
            axes = numpy_helper.to_array(constants[node.input.pop()]).tolist()
            node.attribute.append(helper.make_attribute("axes", axes))
        if node.op_type == "Reshape" and opset < 14:            # it had no attribute allowzero
            del node.attribute[:]
        node.ClearField("metadata_props")
    used = {name for node in model.graph.node for name in node.input}
    for name in set(constants) - used:
        model.graph.initializer.remove(constants[name])
    for part in (model, model.graph):
        part.ClearField("metadata_props")
    model.opset_import[0].version = opset
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)


def sampling_matrix(network: BMN) -> np.ndarray:
    """The sampling weights float32 [P + 1, T*N]: a row for each proposal, and a last row of zeros."""
    scale, samples = network.temporal_scale, network.num_sample
    proposal, n, t, weight = sampling_weights(scale, samples, network.num_sample_perbin, network.prop_boundary_ratio,
                                              network.layout, network.max_duration)
    weights = np.zeros((network.boundary_matching.proposals + 1, samples, scale), np.float32)
    weights[proposal, n, t] = weight
    return np.ascontiguousarray(weights.transpose(0, 2, 1)).reshape(len(weights), -1)


def rebuild_sampling(graph: Any, network: BMN, weights: np.ndarray) -> None:
    """Replace the graph's input "sampling" [P + 1, T*N] by nodes that compute it from small constants.

    A point x gives position t the weight max(0, 1 - |t - x|). Proposals of one length have the same points, only
    shifted. So the weights for each length and each distance r = t - s from the start are computed once, and each
    proposal gathers its own. The weights at position 0 are stored, because there the reference treats points in (-1, 0)
    in its own way.

    Args:
        graph: GraphProto, which is changed.
        network: the options are read from it.
        weights: what :func:`sampling_matrix` returned.
    """
    from onnx import helper, numpy_helper
    scale, samples, bins = network.temporal_scale, network.num_sample, network.num_sample_perbin
    start, end = proposals(scale, network.max_duration)
    width = np.arange(scale, dtype=np.float64)[:, None] + LAYOUTS[network.layout].sampled_after         # [T, 1]
    margin = (width + 1) * network.prop_boundary_ratio
    point = -margin + (width + 2 * margin) / (samples * bins - 1) * np.arange(samples * bins)           # [T, N*K]
    whole = np.floor(point)             # stored apart from the fraction, so that float32 keeps seven digits of that
    distances = 2 * scale - 1           # r = -(T-1) .. T-1
    at_0 = np.zeros((len(start) + scale, samples), np.float32)      # a row for each proposal, then rows of zeros
    at_0[:len(start)] = weights.reshape(-1, scale, samples)[:-1, 0]
    row_at_0 = scale * distances + np.arange(len(start) + 1)
    row_of_start = np.append((end - start) * distances + scale - 1 - start, row_at_0[-1])
    constants = {
        "distance": np.arange(1 - scale, scale, dtype=np.float32).reshape(1, -1, 1),
        "whole": whole.astype(np.float32)[:, None], "fraction": (point - whole).astype(np.float32)[:, None],
        "one": np.float32([1]),
        "mean": np.repeat(np.eye(samples, dtype=np.float32), bins, axis=0) / np.float32(bins),          # [N*K, N]
        "flat": np.int64([scale * distances, samples]),
        "at_0": at_0, "row_at_0": row_at_0.astype(np.int32)[:, None],
        "row_of_start": row_of_start.astype(np.int32)[:, None],
        "position": np.arange(1, scale, dtype=np.int32)[None], "shape": np.int64([len(weights), scale * samples]),
    }
    steps = [           # operator, inputs, output, attributes
        ("Sub", ("distance", "whole"), "d1", {}), ("Sub", ("d1", "fraction"), "d2", {}), ("Abs", ("d2",), "d3", {}),
        ("Sub", ("one", "d3"), "d4", {}), ("Relu", ("d4",), "weight", {}),       # [T, 2T-1, N*K]
        ("MatMul", ("weight", "mean"), "sample", {}), ("Reshape", ("sample", "flat"), "shifted", {}),
        ("Concat", ("shifted", "at_0"), "rows", {"axis": 0}),                   # [T*(2T-1) + P + T, N]
        ("Add", ("row_of_start", "position"), "row_after_0", {}),               # [P + 1, T-1]
        ("Concat", ("row_at_0", "row_after_0"), "row", {"axis": 1}),            # [P + 1, T]
        ("Gather", ("rows", "row"), "gathered", {"axis": 0}), ("Reshape", ("gathered", "shape"), "", {})]

    def named(name):
        return "sampling" + ("/" + name if name else "")

    nodes = [helper.make_node(operator, [named(name) for name in inputs], [named(output)],
                                   name=named(output) + "/node", **attributes)
             for operator, inputs, output, attributes in steps]
    graph.initializer.extend(numpy_helper.from_array(value, named(name)) for name, value in constants.items())
    for node in reversed(nodes):
        graph.node.insert(0, node)
    graph.input.remove(next(value for value in graph.input if value.name == "sampling"))


def compare(network: BMN, path: str, batches: Iterable[int]) -> Dict[int, float]:
    """Largest difference between the outputs of onnxruntime and PyTorch on random features: {batch size: difference}.

    Raises:
        UserError: onnxruntime is missing, or cannot load the file.
    """
    exported = onnx_network.OnnxNetwork(path, network.layout, network.max_duration)
    differences = {}
    for batch in batches:
        image = torch.rand(batch, network.feat_dim, network.temporal_scale)
        with torch.no_grad():
            pairs = zip(exported(image), network(image))
        differences[batch] = float(torch.stack([(one - other).abs().max() for one, other in pairs]).max())
    return differences


def main(args: argparse.Namespace) -> None:
    check_outputs({"the ONNX file": args.target}, {"the checkpoint": args.checkpoint})
    onnx_network.import_or_say("onnxruntime", "tools/export_onnx.py")
    state = checkpoint.read(args.checkpoint, bool(args.ema))
    for line in checkpoint.remarks(state):
        print(line)
    options = recorded.network_options(state, vars(args))
    network = BMN(options).eval()
    checkpoint.put_network(state, network)
    with replacing(args.target) as temporary:
        export(network, temporary, args.batch, args.opset, args.exporter,
               {name: options[name] for name in INPUT_OPTIONS})
        differences = compare(network, temporary, [args.batch] if args.batch else [1, 8])
        if not all(difference <= TOLERANCE for difference in differences.values()):     # also where one is NaN
            raise UserError("%s would differ from PyTorch by %s, more than %g: try another --exporter or --opset"
                            % (args.target, ", ".join(map("{:.1e}".format, differences.values())), TOLERANCE))
    print("%s: %.1f MB, valid ONNX, opset %d, batch %s" % (
        args.target, os.path.getsize(args.target) / 1e6, args.opset, args.batch or "open"))
    for batch, difference in differences.items():
        print("largest difference from PyTorch at batch %d: %.1e" % (batch, difference))


if __name__ == "__main__":
    run_as_program(main, ARGUMENTS)
