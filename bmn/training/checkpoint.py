"""Checkpoints: saving them safely, and reading ours and those of the reference and its ports without running code.

Our file is what ``torch.save`` writes in its old format, followed by a SHA-256 of that. Every PyTorch since 1.5 reads
and writes the old format, and ignores what follows; we notice a damaged byte by the SHA-256. Other checkpoints of this
network are read too: {"epoch", "state_dict"} or a bare state_dict, with or without ``module.`` before the names, with
or without the reference's ``sample_mask``, in any floating-point type.
"""
import glob
import hashlib
import io
import os
import re
import time
import zipfile
from collections import OrderedDict
from typing import Any, Dict, List

import torch

from bmn import unpickling
from bmn.errors import UserError
from bmn.files import replacing
from bmn.inputs import read_bytes
from bmn.options import NETWORK_OPTIONS
from bmn.training import others, recorded

LAST = "BMN_checkpoint.pth.tar"

FORMAT = "BMN checkpoint 1"
_SEAL = b"\nBMN checkpoint, SHA-256 of what stands before: "
_SEAL_SIZE = len(_SEAL) + 64
_OLD_FORMAT = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"      # PyTorch's magic number, in the first pickle
_ABANDONED = 600        # seconds; an older temporary file was left by a run that was killed

_MASKS = ("sample_mask", "bm_mask")     # constants of others, which follow from the options
_OPTION_OF_TENSOR = {"x_1d_b.0.weight": "feat_dim", "x_3d_p.0.weight": "num_sample", "sample_mask": "temporal_scale"}


def save(path: str, state: Dict[str, Any]) -> None:
    """Write the checkpoint ``state``. If this process is killed, the complete old file or the complete new one remains.

    Raises:
        UserError: the folder cannot be written to, or the disk is full; the old file stays as it was.
        TypeError: ``state`` holds something that :func:`read` would refuse.
    """
    write(path, dict(state, format=FORMAT))


def write(path: str, content: Dict[str, Any]) -> None:
    """Write any dict of tensors, numbers, text and containers as :func:`save` does, but without adding "format".

    Raises:
        UserError, TypeError: as in :func:`save`.
    """
    folder, name = os.path.split(os.path.abspath(path))
    for leftover in glob.glob(os.path.join(glob.escape(folder), "." + glob.escape(name) + ".*.tmp")):
        _remove_if_abandoned(leftover)
    buffer = io.BytesIO()       # in memory first, because PyTorch reports a full disk with an exception of its own kind
    torch.save(_plain(content), buffer, _use_new_zipfile_serialization=False)
    # The view is closed in any case, because some releases of Python 3.12 crash on one that an exception left open.
    with buffer.getbuffer() as written, replacing(path) as temporary, open(temporary, "wb") as handle:
        handle.write(written)
        handle.write(_seal(written))


def read(path: str, ema: bool = False) -> Dict[str, Any]:
    """Read a checkpoint of this network onto the CPU. No code in it is run.

    Args:
        path: the file.
        ema: whether to take averaged (EMA) weights, which some programs store beside the others.

    Returns:
        dict with "state_dict" ({our name: tensor}), "epoch", "path", and whatever else the file holds. Where it
        applies, "origin" (the program of others that wrote it), "averaged" (whether the averaged weights, which are
        there, were taken) and "foreign" (names of the objects of other classes, which were left out).

    Raises:
        UserError: the file is missing, unreadable, truncated or damaged, or it is not a checkpoint of this network.
    """
    content, is_whole = _verified(path, _content(path))
    loaded, foreign = _unpickled(path, content)
    try:
        tensors, state, has_averaged = others.find_network(loaded, ema)
        if tensors is not None:
            tensors = others.with_own_names(tensors)
            if others.is_opentad(tensors):
                tensors, state["origin"] = others.from_opentad(tensors), "opentad"
            elif "bm_mask" in tensors or "meta" in state:
                state["origin"] = "mmaction2"
    except UserError as error:
        raise UserError("checkpoint %s %s" % (path, error)) from None
    if tensors is None and foreign:
        raise UserError("checkpoint %s holds %s in the place of tensors: use another one, because reading such a file "
                        "could run code" % (path, others.spelled(foreign)))
    if tensors is None:
        raise UserError("%s is not a checkpoint of this network, because it holds neither 'state_dict' nor named "
                        "tensors of weights: give a .pth.tar file that a training wrote" % path)
    if state.get("format") == FORMAT and not is_whole:
        raise UserError("checkpoint %s lacks its SHA-256: it is truncated, or was saved again in PyTorch's old format; "
                        "fetch it again, or save it with torch.save's present one, which has checksums" % path)
    if not isinstance(state.setdefault("epoch", 0), int):
        raise _damaged(path, "its epoch is a %s and no number" % type(state["epoch"]).__name__)
    if foreign:
        state = {key: state[key] for key in ("epoch", "origin") if key in state}
        state["foreign"] = foreign
    if has_averaged:
        state["averaged"] = bool(ema)
    state["state_dict"], state["path"] = tensors, path
    return state


def remarks(state: Dict[str, Any]) -> List[str]:
    """What a user should know of a ``state`` that :func:`read` returned: a line for each thing."""
    lines = []
    if state.get("averaged") is not None:
        lines.append("%s: the averaged (EMA) weights are taken" % state["path"] if state["averaged"] else
                     "%s: the weights of the last step are taken; the file also has averaged (EMA) weights, often the "
                     "better ones: --ema 1" % state["path"])
    if "foreign" in state:
        lines.append("%s holds objects of other programs beside the weights (%s); they are left out, and no code was "
                     "run" % (state["path"], others.spelled(state["foreign"])))
    if "sample_mask" in state["state_dict"] and recorded.told(state) is None:
        lines.append("%s has sampling weights (sample_mask) of a rule that is not known here; they are not used"
                     % state["path"])
    return lines


def put_network(state: Dict[str, Any], model: Any) -> None:
    """Load the network of a ``state`` that :func:`read` returned into ``model``, a models.BMN, and cast it to its type.

    Raises:
        UserError: the checkpoint is of another network, or holds numbers that are not finite; the tensor and, where it
            is known, the option are named.
    """
    recorded.check_options(state, {name: getattr(model, name) for name in NETWORK_OPTIONS})
    found, wanted = state["state_dict"], model.state_dict()
    for what, names in (("lacks", [name for name in wanted if name not in found]),
                        ("has the unknown", [name for name in found if name not in wanted and name not in _MASKS])):
        if names:
            raise UserError("checkpoint %s is of another network: it %s %s; give a checkpoint of this network"
                            % (state["path"], what, others.spelled(names)))
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    if "sample_mask" in found:
        scale = model.temporal_scale
        shapes["sample_mask"] = (scale, model.num_sample * scale ** 2)
    for name, shape in shapes.items():
        if tuple(found[name].shape) != shape:
            option = _OPTION_OF_TENSOR.get(name)
            raise UserError("checkpoint %s is of another network: %s is %s there and %s here%s" % (
                state["path"], name, tuple(found[name].shape), shape,
                "; give the --%s that it was trained with" % option if option else ""))
    recorded.check_sampling(state, model)
    broken = [name for name in wanted if not torch.isfinite(found[name].float()).all()]
    if broken:
        raise UserError("checkpoint %s holds numbers that are not finite (in %s): use another one, because its "
                        "training failed" % (state["path"], broken[0]))
    model.load_state_dict(OrderedDict((name, found[name]) for name in wanted))


def _plain(value):
    """``value`` with its tensors on the CPU; a TypeError where it holds something that :func:`read` would refuse."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return type(value)((key, _plain(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    if type(value) in (bool, int, float, str, type(None)):
        return value
    raise TypeError("a checkpoint holds tensors, numbers, text and containers, not %s" % type(value))


# Reading bytes from any source, which must not be trusted

def _content(path):
    content = read_bytes(path, "checkpoint")
    if not (content.startswith(b"PK\x03\x04") or _OLD_FORMAT in content[:32]):
        # This also refuses PyTorch's oldest format, a tar file: reading it is not safe even with weights_only.
        if others.is_paddle(content):
            raise UserError("%s %s" % (path, others.PADDLE))
        raise UserError("%s is %s: give a .pth.tar file that a training wrote"
                        % (path, "not a PyTorch checkpoint" if content else "empty"))
    return content


def _seal(content):
    return _SEAL + hashlib.sha256(content).hexdigest().encode()


def _verified(path, content):
    """(content without its seal, whether a checksum shows that it is whole); UserError where one shows damage."""
    if content[-_SEAL_SIZE:].startswith(_SEAL):
        if _seal(memoryview(content)[:-_SEAL_SIZE]) != content[-_SEAL_SIZE:]:
            raise _damaged(path, "its SHA-256 differs")
        return content[:-_SEAL_SIZE], True
    if content.startswith(b"PK"):       # PyTorch itself does not check the checksums in its files
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                names = archive.namelist()
                if sum(member.file_size for member in archive.infolist()) > len(content):
                    raise ValueError("it announces more bytes than it has")     # PyTorch compresses nothing
                damaged = archive.testzip()
        except Exception as error:
            raise _damaged(path, first_line(error)) from None
        if damaged:
            raise _damaged(path, "the checksum of %s differs" % damaged)
        if any(name.endswith("/constants.pkl") for name in names):      # old PyTorch would run it
            raise UserError("%s is a TorchScript program and not a checkpoint: give a .pth.tar file" % path)
    return content, content.startswith(b"PK")


def _damaged(path, reason):
    return UserError("checkpoint %s is truncated or damaged (%s): fetch it again or use another one" % (path, reason))


def _unpickled(path, content):
    try:
        return unpickling.load(content)
    except Exception as error:      # damaged bytes can end in any exception
        raise _damaged(path, first_line(error)) from None


def first_line(error: Exception) -> str:
    """The first line of an error of PyTorch, short enough for a sentence."""
    text = re.sub(r"(?s).*WeightsUnpickler error: ", "", str(error)).strip() or type(error).__name__
    return text.splitlines()[0][:120]


def _remove_if_abandoned(path):
    """Remove a temporary file of a killed run. A newer file stays, because another process may still write it."""
    try:
        if time.time() - os.path.getmtime(path) > _ABANDONED:
            os.remove(path)
    except OSError:
        pass        # it is gone already, or we may not remove it; either does no harm
