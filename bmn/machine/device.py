"""Which device this process takes: NPU, CUDA or CPU; and :func:`setup`, which makes the machine ready.

Import this module before torch. Otherwise ``import torch`` loads an installed torch_npu by itself, and fails where CANN
is missing. Devices are known by name in bmn/machine. Elsewhere only these look at the kind of device:
BoundaryMatching.uses_bags, BMN._skips_cells, dataset.default_workers and dataset.load.
"""
import os

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")   # a lost connection: our sentence instead of a page of C++

import ctypes
import random
import re
import sys
from typing import Optional, Tuple, Union

import numpy as np
import torch

from bmn.errors import UserError, first_line
from bmn.machine.peers import Peers
from bmn.machine.processes import Member, join
from bmn.machine.runtime import Runtime

BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
VISIBLE = {"npu": "ASCEND_RT_VISIBLE_DEVICES", "cuda": "CUDA_VISIBLE_DEVICES"}
TORCH = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])


def npu_problem() -> Optional[str]:
    """Why no NPU can be used here, in words that fit into a sentence; None where one can be used."""
    try:
        import torch_npu  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch_npu":
            return "torch_npu cannot be imported (%s): install that package" % error
        if not hasattr(torch, "npu"):           # Ascend's own build of PyTorch 1.5 contains it
            return "torch_npu is not installed"
    except SystemExit:                          # the torch_npu for PyTorch 1.8 exits
        return "torch_npu stops at its import: CANN is missing, or its set_env.sh was not sourced"
    except Exception as error:                  # a broken installation can raise anything
        return _import_problem(str(error) or type(error).__name__)
    try:
        if torch.npu.is_available() and torch.npu.device_count() > 0:
            return None
    except Exception as error:
        return "torch_npu fails to look for devices (%s)" % first_line(error)
    return "torch_npu sees no device%s" % _visibility("npu")


def _import_problem(text):
    if "undefined symbol" in text:
        return ("torch_npu was built for another PyTorch than the %s installed here (undefined symbol): install the "
                "torch_npu of the same version" % torch.__version__)
    if "cannot open shared object file" in text:
        return ("torch_npu does not find CANN (%s): install CANN, or source its set_env.sh"
                % text[:text.index("cannot open")].strip(" :").splitlines()[-1])
    return "torch_npu cannot be imported (%s)" % first_line(text)


def cuda_problem() -> Optional[str]:
    """Why no CUDA device can be used here, in words that fit into a sentence; None where one can be used."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return "this PyTorch is built without CUDA"
    return "PyTorch sees no CUDA device%s" % _visibility("cuda")


def _visibility(kind):
    value = os.environ.get(VISIBLE[kind])
    return "" if value is None else " (%s=%s)" % (VISIBLE[kind], value)


def choose(wanted: str) -> Tuple[str, str]:
    """Choose the device for ``--device``: "auto" is the first of npu, cuda and cpu that can be used.

    Returns:
        (kind, why): "npu", "cuda" or "cpu", and why the kinds before it cannot be used; "" where none was tried.

    Raises:
        UserError: ``wanted`` names a device that cannot be used.
    """
    problems = {"npu": npu_problem, "cuda": cuda_problem, "cpu": lambda: None}
    passed_over = []
    for kind in problems if wanted == "auto" else (wanted,):
        problem = problems[kind]()
        if problem is None:
            return kind, "; ".join(passed_over)
        passed_over.append("no %s: %s" % (kind, problem))
    raise UserError("--device %s: %s; give --device auto or cpu to go on without it" % (wanted, problem))


def card(kind: str, device_id: Union[str, int], member: Member) -> torch.device:
    """The torch.device of this process.

    Args:
        kind: "npu", "cuda" or "cpu".
        device_id: ``--DeviceID``: the number of a card, or one number for each local rank, separated by commas. Only
            the cards count that ASCEND_RT_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES leave visible.
        member: this process.

    Raises:
        UserError: ``device_id`` is not made of numbers, has too few of them, or names a card that does not exist.
    """
    if kind == "cpu":
        return torch.device("cpu")
    names = str(device_id).split(",")
    if not all(name.strip().isdigit() for name in names):
        raise UserError("--DeviceID %s: give the number of a card, or numbers separated by commas" % device_id)
    if member.local_rank < len(names):
        index = int(names[member.local_rank])
    elif names == ["0"]:                        # the default: each process gets a card of its own
        index = member.local_rank
    else:
        raise UserError("--DeviceID %s leaves local rank %d without a card: give one for each process of this machine"
                        % (device_id, member.local_rank))
    count = getattr(torch, kind).device_count()
    if index >= count:
        raise UserError("card %d (--DeviceID %s, local rank %d) is not there: %d %s %s visible%s; "
                        "give visible cards, one for each process of this machine"
                        % (index, device_id, member.local_rank, count, kind, "is" if count == 1 else "are",
                           _visibility(kind)))
    return torch.device(kind, index)


def setup(opt: dict) -> Runtime:
    """Choose the device, join the other processes, and log both in one line.

    Args:
        opt: complete dict of options; device, DeviceID, is_distributed, world_size, local_rank and patience are read.

    Raises:
        UserError: the device cannot be used, or the processes cannot connect.
    """
    member = Member(opt)
    peers = Peers(member, opt["patience"]) if member.world_size > 1 else None
    kind, why = choose(opt["device"])
    device = card(kind, opt["DeviceID"], member)
    if kind != "cpu":
        getattr(torch, kind).set_device(str(device))
    if kind == "cpu":
        keep_freed_memory()
    store = join(member, kind, BACKENDS[kind]) if peers else None
    if peers:
        peers.ready()
    runtime = Runtime(kind, device, member, store, peers)
    many = ", %d processes over %s" % (member.world_size, BACKENDS[kind]) if member.world_size > 1 else ""
    runtime.log("device: %s%s%s" % (device, many, " (%s)" % why if why else ""))
    return runtime


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next step, instead of getting it from the system again, page by page.

    Every step allocates the same tensors, so the peak stays what it is. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for parameter, value in ((-1, 2 ** 31 - 1), (-3, 2 ** 25)):    # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: the most
            mallopt(parameter, value)


def seed_everything(seed: int) -> None:
    """Seed the random numbers of Python, NumPy and PyTorch. PyTorch also seeds those of the devices."""
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.manual_seed(seed)
