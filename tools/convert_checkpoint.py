"""Turn any checkpoint of this network into the reference's form, or into ours.

    python3 tools/convert_checkpoint.py checkpoint/BMN_best.pth.tar BMN_reference.pth.tar --to reference
    python3 tools/convert_checkpoint.py BMN_reference.pth.tar BMN.pth.tar --to ours --half

The reference's form is {"epoch", "state_dict"} with ``module.`` before every name and the sampling weights of the
BM layer, 128 MB, as ``sample_mask``. The reference's own code loads it strictly. Our form leaves both out and adds the
options that decide what the network computes. --half stores float16, which halves the size. Only the network is
converted, and not the state of a run.

The options are those of the checkpoint where it has them, else those given here, else the defaults. A sample_mask that
contradicts them is an error, because the new file would not show the contradiction.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bmn.errors import command_line, run_as_program
from bmn.options import NETWORK_OPTIONS, OPTIONS


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="any checkpoint of this network")
    parser.add_argument("target", help="file to write")
    parser.add_argument("--to", choices=("reference", "ours"), required=True, help="form of the new file")
    parser.add_argument("--half", action="store_true", help="store float16")
    for name in NETWORK_OPTIONS:
        parser.add_argument("--" + name, type=OPTIONS[name].kind, help="where the checkpoint does not say it")
    return parser.parse_args()


if __name__ == "__main__":      # before the imports that take seconds
    ARGUMENTS = command_line(parse_arguments)

from bmn.machine import device  # isort: skip  # noqa: F401  (before torch)
from collections import OrderedDict
from typing import Any, Dict

import numpy as np
import torch

from bmn.errors import UserError
from bmn.files import check_distinct
from bmn.network.boundary_matching import sampling_weights
from bmn.training import checkpoint
from models import BMN


def convert(state: Dict[str, Any], options: Dict[str, Any], form: str, half: bool) -> Dict[str, Any]:
    """The content of a checkpoint file with the network of ``state``.

    Args:
        state: what ``checkpoint.read`` returned.
        options: the options of the network.
        form: "reference" or "ours".
        half: whether to store float16.

    Raises:
        UserError: the network does not fit these options, or float16 cannot hold its numbers.
    """
    network = BMN(options)
    checkpoint.put_network(state, network)
    wanted, found = sample_mask(options), state["state_dict"].get("sample_mask")
    if found is not None and not torch.allclose(found.float(), wanted, atol=1e-3):
        raise UserError("%s has a sample_mask of other options than %s: give the options that it was trained with"
                        % (state["path"], _spelled(options)))
    tensors = network.state_dict()
    if half:
        tensors = OrderedDict((name, to_half(name, tensor)) for name, tensor in tensors.items())
    if form == "ours":
        return {"format": checkpoint.FORMAT, "epoch": state["epoch"], "state_dict": tensors, "options": options}
    tensors["sample_mask"] = wanted         # always float32, because rounded sampling weights would change the outputs
    return {"epoch": state["epoch"],
            "state_dict": OrderedDict(("module." + name, tensor) for name, tensor in tensors.items())}


def sample_mask(options: Dict[str, Any]) -> torch.Tensor:
    """The reference's sampling weights: float32 [T, N*T*T], with the indices t, n, s, e in this order."""
    scale, samples, bins, ratio = (options[name] for name in (
        "temporal_scale", "num_sample", "num_sample_perbin", "prop_boundary_ratio"))
    proposal, n, t, weight = sampling_weights(scale, samples, bins, ratio)
    start, end = np.triu_indices(scale)
    weights = np.zeros((scale, samples, scale, scale), np.float32)
    weights[t, n, start[proposal], end[proposal]] = weight
    return torch.from_numpy(weights).view(scale, -1)


def to_half(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` in float16; UserError where it has a value that is too large."""
    half = tensor.half()
    if not torch.isfinite(half.float()).all():
        raise UserError("%s has values above float16's largest, 65504: convert without --half" % name)
    return half


def _spelled(options):
    return " ".join("--%s %s" % item for item in options.items())


def main(arguments: argparse.Namespace) -> None:
    given = vars(arguments)
    check_distinct(given["source"], given["target"])
    state = checkpoint.read(given["source"])
    options = checkpoint.network_options(state, given)
    checkpoint.write(given["target"], convert(state, options, given["to"], given["half"]))
    print("%s: %s, epoch %d, %s, %.1f MB" % (
        given["target"], "our form" if given["to"] == "ours" else "the reference's form", state["epoch"],
        _spelled(options), os.path.getsize(given["target"]) / 1e6))


if __name__ == "__main__":
    run_as_program(main, ARGUMENTS)
