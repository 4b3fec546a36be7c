"""Turn any checkpoint of this network into the reference's form, or into ours.

    python3 tools/convert_checkpoint.py checkpoint/BMN_best.pth.tar BMN_reference.pth.tar --to reference
    python3 tools/convert_checkpoint.py BMN_reference.pth.tar BMN.pth.tar --to ours --half
    python3 tools/convert_checkpoint.py bmn_mmaction2.pth BMN.pth.tar --to ours --from mmaction2
    python3 tools/convert_checkpoint.py epoch_7.pth BMN.pth.tar --to ours --from opentad --temporal_scale 128 --ema 1

The reference's form is {"epoch", "state_dict"} with ``module.`` before every name and the sampling weights of the
BM layer, 128 MB, as ``sample_mask``. The reference's own code loads it strictly. Our form leaves both out and adds the
options that decide what the network computes. --half stores float16, which halves the size. Only the network is
converted, and not the state of a run.

The options are those of the checkpoint where it has them, else those given here, else the defaults. A sample_mask tells
all but --feat_dim; one that contradicts what is given is an error, because the new file would not show the
contradiction. --from says whose network it is, where the file does not: with the same weights, the networks of
mmaction2, OpenTAD and the reference before 2020 compute another map than the reference of today (--layout).
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bmn.errors import command_line, run_as_program
from bmn.options import DEFAULTS, OPTIONS, RECORDED_OPTIONS, Parser


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="any checkpoint of this network")
    parser.add_argument("target", help="file to write")
    parser.add_argument("--to", choices=("reference", "ours"), required=True, help="form of the new file")
    parser.add_argument("--half", action="store_true", help="store float16")
    parser.add_argument("--ema", **OPTIONS["ema"].check,
                        help="1: take the averaged (EMA) weights of the checkpoint, where it has them (default: 0)")
    for name in RECORDED_OPTIONS:
        names = ["--layout", "--from"] if name == "layout" else ["--" + name]
        parser.add_argument(*names, **OPTIONS[name].check,
                            help="where the checkpoint does not say it (default: %s)" % DEFAULTS[name])
    return parser.parse_args()


if __name__ == "__main__":      # before the imports that take seconds
    ARGUMENTS = command_line(parse_arguments)

from bmn.machine import device  # isort: skip  # noqa: F401  (before torch)
from collections import OrderedDict
from typing import Any, Dict

import torch

from bmn.errors import UserError
from bmn.files import check_outputs
from bmn.sampling import whole_mask
from bmn.training import checkpoint, recorded
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
    if form == "reference" and network.max_duration:
        raise UserError("--to reference: its form has no longest duration, but this network has --max_duration %d: "
                        "give --to ours" % network.max_duration)
    found, wanted = state["state_dict"].get("sample_mask"), None
    if found is not None or form == "reference":
        wanted = sample_mask(options)
    if found is not None and not torch.allclose(found.float(), wanted, atol=4e-3):      # it may be in bfloat16
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
    """The sampling weights as the reference stores them: float32 [T, N*T*T], with the indices t, n, and the map's."""
    scale, *others = (options[name] for name in (
        "temporal_scale", "num_sample", "num_sample_perbin", "prop_boundary_ratio", "layout"))
    return torch.from_numpy(whole_mask(scale, *others)).view(scale, -1)


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
    check_outputs({"the new file": given["target"]}, {"the checkpoint": given["source"]})
    state = checkpoint.read(given["source"], bool(given["ema"]))
    for line in checkpoint.remarks(state):
        print(line)
    options = recorded.network_options(state, given)
    checkpoint.write(given["target"], convert(state, options, given["to"], given["half"]))
    print("%s: %s, epoch %d, %s, %.1f MB" % (
        given["target"], "our form" if given["to"] == "ours" else "the reference's form", state["epoch"],
        _spelled(options), os.path.getsize(given["target"]) / 1e6))


if __name__ == "__main__":
    run_as_program(main, ARGUMENTS)
