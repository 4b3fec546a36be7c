"""ONNX files of the reference's network and of ours, with the same weights: size, and time in onnxruntime.

    python3 benchmarks/onnx_export.py --reference DIR           # needs 4 GB; the files go to a temporary folder

DIR is a clone of github.com/JJBOY/BMN-Boundary-Matching-Network at a92c1d7. Times are processor seconds a video on
one thread, the least of the repeats; both sessions take turns in one process. Loading ends when a session can run.
"""
import argparse
import os
import sys
import tempfile
import time
import warnings

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tools"))
import numpy as np
import torch
from export_onnx import OUTPUTS, export
from reference import load_reference

from bmn.errors import run_as_program
from bmn.network.onnx_network import import_or_say
from bmn.options import DEFAULTS
from models import BMN


def export_reference(network, path):
    """Export as Ascend's offline-inference package does, with an open batch."""
    open_batch = {name: {0: "batch"} for name in ["image"] + OUTPUTS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.rand(1, 400, 100),), path, input_names=["image"], output_names=OUTPUTS,
                          opset_version=11, dynamo=False, dynamic_axes=open_batch)


def load(path):
    """(session on one thread, processor seconds that it took)."""
    onnxruntime = import_or_say("onnxruntime", "benchmarks/onnx_export.py")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    began = time.process_time()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]), time.process_time() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", required=True, help="clone of the reference")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models, = load_reference(args.reference, "models")
    theirs = models.BMN(DEFAULTS).eval()
    ours = BMN(DEFAULTS).eval()
    ours.load_state_dict(theirs.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("reference.onnx", "ours.onnx")]
        export_reference(theirs, paths[0])
        export(ours, paths[1], batch=0, opset=11, exporter="auto")
        sizes = [os.path.getsize(path) / 1e6 for path in paths]
        sessions, loading = zip(*map(load, paths))
    rows = [("file (MB)", sizes), ("loading (s)", loading)]
    for batch in (1, 8):
        image = {"image": np.random.RandomState(0).rand(batch, 400, 100).astype(np.float32)}
        outputs, best = [session.run(OUTPUTS, image) for session in sessions], []
        difference = max(float(np.abs(one - other).max()) for one, other in zip(*outputs))
        for _ in range(args.repeats):
            times = []
            for session in sessions:
                began = time.process_time()
                session.run(OUTPUTS, image)
                times.append((time.process_time() - began) / batch)
            best.append(times)
        rows.append(("onnxruntime, batch %d (s a video)" % batch, np.min(best, axis=0)))
    print("%-36s %12s %12s %9s" % ("", "reference", "ours", "ratio"))
    for name, (reference, mine) in rows:
        print("%-36s %12.3f %12.3f %8.1fx" % (name, reference, mine, reference / mine))
    print("largest difference of the outputs, batch 8: %.1e" % difference)


if __name__ == "__main__":
    run_as_program(main)
