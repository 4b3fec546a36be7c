"""The machine: NPU, CUDA or CPU, one process or many.

Import this module before torch. Otherwise ``import torch`` loads an installed torch_npu by itself, and fails where CANN
is missing. Devices are known by name in bmn/machine. Elsewhere only these look at the kind of device:
BoundaryMatching.uses_bags, BMN._skips_cells, dataset.default_workers and main.load.
"""
import os

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")   # a lost connection: our sentence instead of a page of C++

import contextlib
import ctypes
import json
import pickle
import random
import re
import resource
import sys
import time
from typing import Any, ContextManager, Dict, List, Optional, Tuple, Union

import numpy as np
import torch
import torch.distributed as dist

from bmn.errors import UserError
from bmn.machine import profiling
from bmn.machine.processes import Member, Peers, join

BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
VISIBLE = {"npu": "ASCEND_RT_VISIBLE_DEVICES", "cuda": "CUDA_VISIBLE_DEVICES"}
KEPT_DECISIONS = 1000       # of the last ones; every process has read the earlier ones
TORCH = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])


# ---- which device ------------------------------------------------------------------------------------------------

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
        return "torch_npu fails to look for devices (%s)" % _first_line(error)
    return "torch_npu sees no device%s" % _visibility("npu")


def _import_problem(text):
    if "undefined symbol" in text:
        return ("torch_npu was built for another PyTorch than the %s installed here (undefined symbol): install the "
                "torch_npu of the same version" % torch.__version__)
    if "cannot open shared object file" in text:
        return ("torch_npu does not find CANN (%s): install CANN, or source its set_env.sh"
                % text[:text.index("cannot open")].strip(" :").splitlines()[-1])
    return "torch_npu cannot be imported (%s)" % _first_line(text)


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


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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


# ---- what the rest of the program sees -----------------------------------------------------------------------------

class Runtime:
    """One process's view of the machine. :func:`setup` makes it, and it is passed on as an argument.

    Attributes:
        kind: "npu", "cuda" or "cpu".
        device: torch.device.
        rank, world_size, local_rank: numbers of this process, as in :class:`Member`.
        is_main: whether this is rank 0.

    Use it in a ``with`` block. Its end leaves the process group in order. After a RuntimeError it waits a moment. If
    another process has failed first, the watch ends this process meanwhile, with a message about the other one.
    """

    def __init__(self, kind: str, device: torch.device, member: Member, store: Any = None, peers: Any = None):
        self.kind, self.device = kind, device
        self.rank, self.world_size, self.local_rank = member.rank, member.world_size, member.local_rank
        self.is_main = member.rank == 0
        self._store, self._peers, self._barriers, self._decisions, self._stop = store, peers, 0, 0, ""
        self._api = None if kind == "cpu" else getattr(torch, kind)

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, kind, error, trace):
        if error is None or kind is SystemExit:     # all processes stop together after a signal
            self.close()
        elif self._peers:
            if isinstance(error, RuntimeError):
                self._peers.give_way()          # perhaps it only follows from the end of another process
            self._peers.fall_silent()

    def close(self) -> None:
        """Leave the process group. Rank 0 leaves last, because the others are connected to it."""
        if self._peers:
            self._peers.leave()
            dist.destroy_process_group()
            self._peers = None

    def alone(self) -> ContextManager[None]:
        """A context in which this process waits for no other one, but perhaps for a disk. See :class:`Peers`."""
        return self._peers.alone() if self._peers else contextlib.nullcontext()

    def log(self, text: str) -> None:
        """Print on rank 0, without delay; the other ranks print nothing."""
        if self.is_main:
            print(text, flush=True)

    def local_batch_size(self, batch_size: int) -> int:
        """How many of the ``batch_size`` videos of a step this process gets.

        Raises:
            UserError: the videos cannot be divided evenly among the processes.
        """
        if batch_size % self.world_size:
            raise UserError("--batch_size %d cannot be divided evenly among %d processes: give a multiple of %d"
                            % (batch_size, self.world_size, self.world_size))
        return batch_size // self.world_size

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model on this device. With several processes DistributedDataParallel wraps it, to average gradients."""
        model = model.to(self.device)
        if self.world_size == 1:
            return model
        ids = None if self.kind == "cpu" else [self.device.index]
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def synchronize(self) -> None:
        """Wait until the device has done all its work, so that a time measured afterwards is right."""
        if self._api:
            self._api.synchronize()

    def reset_peak_memory(self) -> None:
        """Start a new measurement for :meth:`peak_memory_mb`. On the CPU there is only the peak since the start."""
        reset = getattr(self._api, "reset_peak_memory_stats", None) or getattr(
            self._api, "reset_max_memory_allocated", None)
        if reset:
            reset(self.device)

    def peak_memory_mb(self) -> float:
        """Peak of the allocated device memory in MiB; on the CPU the peak of the process's resident set."""
        if self._api:
            return self._api.max_memory_allocated(self.device) / 2.0 ** 20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2.0 ** (20 if sys.platform == "darwin" else 10)

    def barrier(self) -> None:
        """Wait until all processes have called this, however long that takes.

        The processes meet through the store and not through the device, because HCCL and NCCL give up on a collective
        that starts minutes apart.
        """
        if self.world_size == 1:
            return
        self._barriers += 1
        name, pause = "bmn/barrier/%d" % self._barriers, 0.001
        arrived = self._store.add(name, 1)
        while arrived < self.world_size:
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
            arrived = self._store.add(name, 0)

    def agreed(self, decision: Any) -> Any:
        """Rank 0's ``decision``, anything that JSON can hold, on every process. It goes through the store.

        Unlike :meth:`broadcast` it makes no process wait for its device.
        """
        if self.world_size == 1:
            return decision
        self._decisions += 1
        name = "bmn/decision/%d"
        if self.is_main:
            self._store.set(name % self._decisions, json.dumps(decision))
            if self._decisions > KEPT_DECISIONS and hasattr(self._store, "delete_key"):
                self._store.delete_key(name % (self._decisions - KEPT_DECISIONS))
            return decision
        return json.loads(self._store.get(name % self._decisions).decode())

    def ask_to_stop(self, why: str) -> None:
        """Let :meth:`asked_to_stop` on rank 0 give ``why``, the name of a signal."""
        if self.world_size > 1:
            self._store.set("bmn/stop", why)
            self._store.add("bmn/stops", 1)
        self._stop = why

    def asked_to_stop(self) -> str:
        """What any process has given to :meth:`ask_to_stop`; "" where none has. For rank 0."""
        if not self._stop and self.world_size > 1 and self._store.add("bmn/stops", 0):
            self._stop = self._store.get("bmn/stop").decode()
        return self._stop

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of the processes' tensors, on the device of ``tensor``: float32, of the same shape everywhere."""
        if self.world_size == 1:
            return tensor
        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def gather(self, value: Any) -> List[Any]:
        """[value of rank 0, value of rank 1, ...] on every process. The values can be anything that pickle accepts."""
        if self.world_size == 1:
            return [value]
        self.barrier()          # because one process may come to a collective long before another
        data = _packed(value)
        sizes = self._all_gather(torch.tensor([data.numel()]))
        padded = torch.zeros(max(int(size) for size in sizes), dtype=torch.uint8)
        padded[:data.numel()] = data
        return [pickle.loads(part[:int(size)].numpy().tobytes())
                for part, size in zip(self._all_gather(padded), sizes)]

    def _all_gather(self, tensor):
        tensor = tensor.to(self.device)
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor)
        return [part.cpu() for part in parts]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value``, on every process. It can be anything that pickle accepts."""
        if self.world_size == 1:
            return value
        self.barrier()
        data = _packed(value if self.is_main else None)
        size = torch.tensor([data.numel()], device=self.device)
        dist.broadcast(size, 0)
        data = data.to(self.device) if self.is_main else torch.empty(int(size), dtype=torch.uint8, device=self.device)
        dist.broadcast(data, 0)
        return value if self.is_main else pickle.loads(data.cpu().numpy().tobytes())

    def random_state(self) -> Dict[str, torch.Tensor]:
        """State of the random number generators, {"cpu": tensor, "<kind>": tensor}, for :meth:`set_random_state`."""
        state = {"cpu": torch.get_rng_state()}
        if self._api and hasattr(self._api, "get_rng_state"):
            state[self.kind] = self._api.get_rng_state(self.device).cpu()
        return state

    def set_random_state(self, state: Dict[str, torch.Tensor]) -> None:
        """Set what :meth:`random_state` gave. The state of another kind of device is left out.

        Raises:
            UserError: it is not a state of these random number generators.
        """
        try:
            torch.set_rng_state(state["cpu"].cpu())
            if self._api and self.kind in state:
                self._api.set_rng_state(state[self.kind].cpu(), self.device)
        except (RuntimeError, TypeError) as error:
            raise UserError("the state of the random numbers in the checkpoint cannot be used (%s): use another "
                            "checkpoint" % _first_line(error)) from None

    def check_profiler(self, folder: str) -> None:
        """Check that a trace can be made, and make its ``folder``. An empty ``folder`` means no trace.

        Raises:
            UserError: there is no profiler here, or the folder cannot be made.
        """
        if folder:
            profiling.find(self.kind, folder)

    def profiler(self, folder: str) -> ContextManager[Any]:
        """A context that gives a profiler. Call its ``step()`` once per iteration; it writes a trace into ``folder``.

        The context gives None where ``folder`` is empty, and on all ranks except 0.
        """
        return profiling.trace(self.kind, folder if self.is_main else "", self.log)


def _packed(value):
    """``value`` pickled, as uint8 [bytes], because every backend of every version can send that."""
    return torch.from_numpy(np.frombuffer(pickle.dumps(value, protocol=4), dtype=np.uint8).copy())


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
