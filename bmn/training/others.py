"""BMN networks as other programs store them: their wrappers, their names, their order of tensors.

Only the tensors matter. Where they are the same network, they get our names; what a program adds is left out.
"""
from collections import OrderedDict
from typing import Any, Dict, List, Optional, Tuple

import torch

from bmn.errors import UserError

WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network")
AVERAGED = ("state_dict_ema", "ema")            # keys of averaged weights, beside the others
PREFIXES = ("module.", "_orig_mod.", "model.")  # of parallel training, of torch.compile, of a training class
SAMPLED = 256           # channels into the BM layer here

# OpenTAD's names of layers -> ours. Its boundary heads are two of one kind, first the start and then the end.
OPENTAD = {
    "projection.convs.0.conv": "x_1d_b.0", "projection.convs.1.conv": "x_1d_b.2",
    "rpn_head.tem.0.0.conv": "x_1d_s.0", "rpn_head.tem.0.1.conv": "x_1d_s.2",
    "rpn_head.tem.1.0.conv": "x_1d_e.0", "rpn_head.tem.1.1.conv": "x_1d_e.2",
    "roi_head.proposal_roi_extractor.reduce_dim.0": "x_1d_p.0",
    "roi_head.proposal_roi_extractor.conv3d.0": "x_3d_p.0",
    "roi_head.proposal_roi_extractor.conv2d.0": "x_2d_p.0",
    "roi_head.proposal_head.head.0.0": "x_2d_p.2", "roi_head.proposal_head.head.1.0": "x_2d_p.4",
    "roi_head.proposal_head.head.2": "x_2d_p.6",
}
_FIRST = ("x_1d_b.0.weight", "projection.convs.0.conv.weight")      # a name by which a prefix is found


def find_network(state: Any, ema: bool) -> Tuple[Optional[Dict[str, torch.Tensor]], Dict[str, Any], bool]:
    """The named tensors of a network in what a file holds.

    Args:
        state: any object.
        ema: whether to take averaged weights.

    Returns:
        (tensors, or None where there are none; what else the file holds; whether it has averaged weights).

    Raises:
        UserError: several networks are there, or averaged weights are wanted and not there. The sentence goes on after
            "checkpoint PATH".
    """
    if not isinstance(state, dict):
        return None, {}, False
    averaged = next((key for key in AVERAGED if _tensors(state.get(key))), None)
    if ema and averaged is None:
        raise UserError("has no averaged (EMA) weights: leave out --ema 1")
    if ema:
        wrapper = averaged
    elif "state_dict" in state:
        wrapper = "state_dict"
    else:
        found = [key for key in WRAPPERS if _tensors(state.get(key))]
        if len(found) > 1:
            raise UserError("holds several networks (%s): keep one of them" % ", ".join(found))
        wrapper = found[0] if found else None
    if wrapper is None:
        return _tensors(state), {}, averaged is not None
    rest = {key: value for key, value in state.items() if key not in WRAPPERS + AVERAGED}
    return _tensors(state[wrapper]), rest, averaged is not None


def _tensors(value):
    """{name: tensor} of a dict of tensors, or of one that holds such a dict as its state_dict; else None."""
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict) or not value:
        return None
    named = [(name, tensor) for name, tensor in value.items() if not _is_counter(tensor)]
    return OrderedDict(named) if named and all(map(_is_weight, named)) else None


def _is_weight(item):
    name, tensor = item
    return (isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
            and tensor.device.type == "cpu" and tensor.dtype.is_floating_point)


def _is_counter(tensor):
    """A step count, as averaged networks have it."""
    return isinstance(tensor, torch.Tensor) and tensor.dim() == 0 and not tensor.dtype.is_floating_point


def with_own_names(tensors: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """The tensors without the prefix that their names have in common, in the same order.

    Names with the prefix lose it; one without it, which is no part of the network, stays.
    """
    prefix = next((name[:-len(first)] for name in tensors for first in _FIRST if name.endswith(first)), None)
    if prefix is None:          # of another network: then at least the message about it names its layers shortly
        prefix = ""
        while any(all(name.startswith(prefix + word) for name in tensors) for word in PREFIXES):
            prefix += next(word for word in PREFIXES if all(name.startswith(prefix + word) for name in tensors))
    return OrderedDict((name[len(prefix):] if name.startswith(prefix) else name, tensor)
                       for name, tensor in tensors.items())


def is_opentad(tensors: Dict[str, torch.Tensor]) -> bool:
    """Whether these tensors have OpenTAD's names."""
    return _FIRST[1] in tensors


def from_opentad(tensors: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """OpenTAD's tensors as ours: other names, 128 sampled channels filled up with zeros, outputs in our order.

    Zeros are exact: a channel that is always zero adds nothing, and in a training it stays zero.

    Raises:
        UserError: a layer is not OpenTAD's BMN. The sentence goes on after "checkpoint PATH".
    """
    renamed = OrderedDict()
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if layer not in OPENTAD:
            raise UserError("is OpenTAD's, but has the layer %s, which its BMN has not: give a checkpoint of BMN"
                            % layer)
        renamed[OPENTAD[layer] + "." + part] = tensor
    if any(OPENTAD[layer] + part not in renamed for layer in OPENTAD for part in (".weight", ".bias")):
        raise UserError("is OpenTAD's, but lacks layers of its BMN: give a whole checkpoint")
    for name, axis in (("x_1d_p.0.weight", 0), ("x_1d_p.0.bias", 0), ("x_3d_p.0.weight", 1)):
        tensor = renamed[name]
        if tensor.dim() > axis and tensor.shape[axis] < SAMPLED:
            shape = list(tensor.shape)
            shape[axis] = SAMPLED - shape[axis]
            renamed[name] = torch.cat([tensor, tensor.new_zeros(shape)], axis)
    weight = renamed["x_3d_p.0.weight"]
    renamed["x_3d_p.0.weight"] = weight.unsqueeze(-1) if weight.dim() == 4 else weight      # of a Conv2d
    for name in ("x_2d_p.6.weight", "x_2d_p.6.bias"):       # classification first there, regression first here
        renamed[name] = renamed[name].flip(0) if renamed[name].dim() else renamed[name]
    return renamed


def is_paddle(content: bytes) -> bool:
    """Whether a file is PaddleVideo's BMN (.pdparams): a pickle of arrays with names like b_conv1 and p_conv2d4."""
    return content[:1] == b"\x80" and b"p_conv2d" in content and b"b_conv1" in content


PADDLE = ("is PaddleVideo's BMN, which is another network (128 channels, other layers) and cannot be served here: give "
          "a checkpoint of the reference, mmaction2 or OpenTAD")


def spelled(names: List[str]) -> str:
    """The first three names, for a message."""
    return ", ".join(names[:3]) + (" and %d more" % (len(names) - 3) if names[3:] else "")
