"""Checkpoints: written whole or not at all, read without running anything, exchanged with the reference and its ports.

A file of ours is what ``torch.save`` writes in its old format (the one form that every PyTorch from 1.5 to today's
reads and writes), followed by a SHA-256 of it: PyTorch ignores what follows, we notice a damaged byte. Any other
checkpoint of this network is read too: {"epoch", "state_dict"} or a bare state_dict, with or without ``module.``
before the names, with or without the reference's ``sample_mask``, in any floating-point type.
"""
import glob
import hashlib
import io
import os
import re
import time
import zipfile
from collections import OrderedDict

import torch

from bmn.errors import UserError
from bmn.files import replacing
from bmn.options import DEFAULTS, NETWORK_OPTIONS
from bmn.training import unpickling

LAST = "BMN_checkpoint.pth.tar"
BEST = "BMN_best.pth.tar"

FORMAT = "BMN checkpoint 1"
_SEAL = b"\nBMN checkpoint, SHA-256 of what stands before: "
_SEAL_SIZE = len(_SEAL) + 64
_OLD_FORMAT = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"      # PyTorch's magic number, in the first pickle
_ABANDONED = 600        # seconds after which a temporary file belongs to a run that was killed

_OPTION_OF_TENSOR = {"x_1d_b.0.weight": "feat_dim", "x_3d_p.0.weight": "num_sample", "sample_mask": "temporal_scale"}


def load_network(path, model):
    """Load the network of any accepted checkpoint into ``model``.

    Returns:
        The rest of the checkpoint, a dict: "epoch" (0 where unknown), "path", and in files of ours the state of the
        run.

    Raises:
        UserError: as :func:`read`, or the checkpoint is of another network: the tensor and the option are named.
    """
    state = read(path)
    put_network(state, model)
    del state["state_dict"]
    return state


def save(path, state):
    """Write ``state`` so that a reader, or a kill at any moment, finds the old file or the new one, whole.

    Raises:
        UserError: the folder cannot be written to, or the disk is full; the old file is as it was.
    """
    write(path, dict(state, format=FORMAT))


def write(path, content):
    """Write any dict of tensors, numbers, text and containers, as :func:`save` does, without the mark of ours."""
    folder, name = os.path.split(os.path.abspath(path))
    for leftover in glob.glob(os.path.join(glob.escape(folder), "." + glob.escape(name) + ".*.tmp")):
        _remove_if_abandoned(leftover)
    buffer = io.BytesIO()       # in memory first: PyTorch tells of a full disk in an exception of its own kind
    torch.save(_plain(content), buffer, _use_new_zipfile_serialization=False)
    written = buffer.getbuffer()
    with replacing(path) as temporary, open(temporary, "wb") as handle:
        handle.write(written)
        handle.write(_seal(written))


def read(path):
    """Read any accepted checkpoint on the CPU; nothing in it is executed.

    Returns:
        dict with "state_dict" ({own name: tensor}, ``module.`` stripped), "epoch", "path", and what else it holds.

    Raises:
        UserError: missing, unreadable, truncated or damaged, more than tensors and plain values, or no checkpoint of
            this network.
    """
    content, sealed = _verified(path, _content(path))
    state = _unpickled(path, content)
    if isinstance(state, dict) and "state_dict" not in state:
        state = {"state_dict": state}
    tensors = state.get("state_dict") if isinstance(state, dict) else None
    if not isinstance(tensors, dict) or not tensors or not all(map(_is_weight, tensors.items())):
        raise UserError("%s is no checkpoint of this network: it holds neither 'state_dict' nor named tensors of "
                        "weights, give a .pth.tar file that a training wrote" % path)
    if state.get("format") == FORMAT and not sealed:
        raise _damaged(path, "its end is missing")
    if not isinstance(state.setdefault("epoch", 0), int):
        raise _damaged(path, "its epoch is %r" % (state["epoch"],))
    state["state_dict"] = OrderedDict((_own_name(name), tensor) for name, tensor in tensors.items())
    state["path"] = path
    return state


def put_network(state, model):
    """Load the network of a state that :func:`read` returned into ``model``, cast to its type; or say what differs."""
    check_options(state, {name: getattr(model, name) for name in NETWORK_OPTIONS})
    found, wanted = state["state_dict"], model.state_dict()
    for what, names in (("lacks", [name for name in wanted if name not in found]),
                        ("has the unknown", [name for name in found if name not in wanted and name != "sample_mask"])):
        if names:
            raise UserError("checkpoint %s is of another network: it %s %s%s" % (
                state["path"], what, ", ".join(names[:3]), " and %d more" % (len(names) - 3) if names[3:] else ""))
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    if "sample_mask" in found:
        scale = model.temporal_scale
        shapes["sample_mask"] = (scale, model.num_sample * scale ** 2)
    for name, shape in shapes.items():
        if tuple(found[name].shape) != shape:
            option = _OPTION_OF_TENSOR.get(name)
            raise UserError("checkpoint %s is of another network: %s is %s there and %s here%s" % (
                state["path"], name, tuple(found[name].shape), shape,
                ", give the --%s that it was trained with" % option if option else ""))
    broken = [name for name in wanted if not torch.isfinite(found[name].float()).all()]
    if broken:
        raise UserError("checkpoint %s holds numbers that are not finite (in %s): its training failed, use another one"
                        % (state["path"], broken[0]))
    model.load_state_dict(OrderedDict((name, found[name]) for name in wanted))


def network_options(state, given):
    """The options of the network in ``state``: what its tensors and options say, else what is given, else defaults.

    Args:
        given: {option: value}; None is not given, and other options are left out.

    Raises:
        UserError: what is given contradicts the checkpoint.
    """
    tensors, options = state["state_dict"], state.get("options")
    options = options if isinstance(options, dict) else {}
    known = {name: options[name] for name in NETWORK_OPTIONS if isinstance(options.get(name), (int, float))}
    if "x_1d_b.0.weight" in tensors:
        known["feat_dim"] = 4 * tensors["x_1d_b.0.weight"].shape[1]         # 4 groups
    if "x_3d_p.0.weight" in tensors:
        known["num_sample"] = tensors["x_3d_p.0.weight"].shape[2]
    if "sample_mask" in tensors:
        known["temporal_scale"] = len(tensors["sample_mask"])
    for name in NETWORK_OPTIONS:
        if given.get(name) is not None and known.setdefault(name, given[name]) != given[name]:
            raise UserError("--%s %s is given, but %s was made with %s"
                            % (name, given[name], state["path"], known[name]))
    return {name: known.get(name, DEFAULTS[name]) for name in NETWORK_OPTIONS}


def check_options(state: dict, wanted: dict):
    """UserError where the checkpoint was made with another value of an option in ``wanted`` {name: value}.

    The shapes of tensors do not show every option.
    """
    options = state.get("options")
    for name, value in wanted.items():
        if isinstance(options, dict) and options.get(name, value) != value:
            raise UserError("checkpoint %s was made with --%s %s, and this is %s: give the same"
                            % (state["path"], name, options[name], value))


def _own_name(name):
    return name[len("module."):] if name.startswith("module.") else name


def _is_weight(item):
    name, tensor = item
    return (isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
            and tensor.dtype.is_floating_point)


def _plain(value):
    """``value`` with its tensors on the CPU; an error where it has what a safe reader would refuse."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return type(value)((key, _plain(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    if type(value) in (bool, int, float, str, type(None)):
        return value
    raise TypeError("a checkpoint holds tensors, numbers, text and containers, not %s" % type(value))


# Reading bytes that anybody may have written

def _content(path):
    try:
        with open(path, "rb") as handle:
            head = handle.read(32)
            if not (head.startswith(b"PK\x03\x04") or _OLD_FORMAT in head):
                # also PyTorch's oldest format, a tar file, whose reader is not safe even with weights_only
                raise UserError("%s is %s: give a .pth.tar file that a training wrote"
                                % (path, "no PyTorch checkpoint" if head else "empty"))
            return head + handle.read()
    except FileNotFoundError:
        raise UserError("checkpoint %s does not exist: check the path" % path) from None
    except OSError as error:
        raise UserError("checkpoint %s cannot be read (%s): check the path and its permissions"
                        % (path, error.strerror)) from None


def _seal(content):
    return _SEAL + hashlib.sha256(content).hexdigest().encode()


def _verified(path, content):
    """(content without its seal, whether it has one); UserError where the bytes are not those that were written."""
    if content[-_SEAL_SIZE:].startswith(_SEAL):
        if _seal(memoryview(content)[:-_SEAL_SIZE]) != content[-_SEAL_SIZE:]:
            raise _damaged(path, "its SHA-256 differs")
        return content[:-_SEAL_SIZE], True
    if content.startswith(b"PK"):       # PyTorch itself never looks at the checksums in its files
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                damaged = archive.testzip()
                names = archive.namelist()
        except Exception as error:
            raise _damaged(path, first_line(error)) from None
        if damaged:
            raise _damaged(path, "the checksum of %s differs" % damaged)
        if any(name.endswith("/constants.pkl") for name in names):      # old PyTorch would run it
            raise UserError("%s is a TorchScript program, no checkpoint: give a .pth.tar file" % path)
    return content, False


def _damaged(path, reason):
    return UserError("checkpoint %s is truncated or damaged (%s): fetch it again or use another one" % (path, reason))


def _unpickled(path, content):
    try:
        return unpickling.load(content)
    except Exception as error:      # damaged bytes can end in any exception
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            raise UserError("checkpoint %s holds %s beside tensors and plain values: it is refused, for reading such "
                            "a file could run code" % (path, foreign.group(1))) from None
        raise _damaged(path, first_line(error)) from None


def first_line(error: Exception) -> str:
    """What an error of PyTorch says, short enough for a sentence."""
    text = re.sub(r"(?s).*WeightsUnpickler error: ", "", str(error)).strip() or type(error).__name__
    return text.splitlines()[0][:120]


def _remove_if_abandoned(path):
    """A kill while writing leaves a temporary file; a fresh one may be another process's work."""
    try:
        if time.time() - os.path.getmtime(path) > _ABANDONED:
            os.remove(path)
    except OSError:
        pass        # gone already, or not ours to remove: it harms nobody
