"""The machine: NPU, CUDA or CPU, one process or many.

Import this module before torch: with torch_npu installed and CANN absent, ``import torch`` alone would die
while it loads that backend by itself. Beside amp.py this is the only file that knows a device by name.
"""
import os

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import pickle
import random
import re
import resource
import sys
import time

import numpy as np
import torch
import torch.distributed as dist

from bmn.errors import UserError
from bmn.machine import profiling
from bmn.machine.processes import Member, join

BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
VISIBLE = {"npu": "ASCEND_RT_VISIBLE_DEVICES", "cuda": "CUDA_VISIBLE_DEVICES"}
TORCH = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])


# ---- which device ------------------------------------------------------------------------------------------------

def npu_problem():
    """Why no NPU can be used here, as the middle of a sentence; None where one can."""
    try:
        import torch_npu  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch_npu":
            return "torch_npu cannot be imported (%s): install that package" % error
        if not hasattr(torch, "npu"):           # Ascend's own build of PyTorch 1.5 has it built in
            return "torch_npu is not installed"
    except SystemExit:                          # that of PyTorch 1.8 leaves the program
        return "torch_npu stops at its import: CANN is missing, or its set_env.sh was not sourced"
    except Exception as error:                  # whatever a broken installation raises
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


def cuda_problem():
    """Why no CUDA device can be used here, as the middle of a sentence; None where one can."""
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


def choose(wanted):
    """``--device`` -> (kind, why): "npu", "cuda" or "cpu", and what spoke against the earlier ones.

    Raises:
        UserError: the device asked for by name is not to be had.
    """
    problems = {"npu": npu_problem, "cuda": cuda_problem, "cpu": lambda: None}
    passed_over = []
    for kind in problems if wanted == "auto" else (wanted,):
        problem = problems[kind]()
        if problem is None:
            return kind, "; ".join(passed_over)
        passed_over.append("no %s: %s" % (kind, problem))
    raise UserError("--device %s: %s; give --device auto or cpu to go on without" % (wanted, problem))


def card(kind, device_id, member):
    """The torch.device of this process, by ``--DeviceID`` (a card, or a list: one for each local rank).

    The numbers count among the cards that ASCEND_RT_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES leave visible.

    Raises:
        UserError: not numbers, too few of them, or no such card.
    """
    if kind == "cpu":
        return torch.device("cpu")
    names = str(device_id).split(",")
    if not all(name.strip().isdigit() for name in names):
        raise UserError("--DeviceID %s: give the number of a card, or numbers separated by commas" % device_id)
    if member.local_rank < len(names):
        index = int(names[member.local_rank])
    elif names == ["0"]:                        # the default names no card in particular
        index = member.local_rank
    else:
        raise UserError("--DeviceID %s leaves local rank %d without a card: name one for each process of a machine"
                        % (device_id, member.local_rank))
    count = getattr(torch, kind).device_count()
    if index >= count:
        raise UserError("card %d (--DeviceID %s, local rank %d) is not there: %d %s %s visible%s"
                        % (index, device_id, member.local_rank, count, kind, "is" if count == 1 else "are",
                           _visibility(kind)))
    return torch.device(kind, index)


# ---- what the rest of the program sees -----------------------------------------------------------------------------

class Runtime:
    """One process's view of the machine. Made by :func:`setup`, handed on as an argument.

    Attributes:
        kind: "npu", "cuda" or "cpu"; device: torch.device; rank, world_size, local_rank; is_main: rank 0.

    As a context manager it leaves the process group in order, and after a failure lets the word of the process
    that failed first be the last one.
    """

    def __init__(self, kind, device, member, store=None, peers=None):
        self.kind, self.device = kind, device
        self.rank, self.world_size, self.local_rank = member.rank, member.world_size, member.local_rank
        self.is_main = member.rank == 0
        self._store, self._peers, self._barriers = store, peers, 0
        self._api = None if kind == "cpu" else getattr(torch, kind)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None:
            self.close()
        elif isinstance(error, RuntimeError) and self._peers:
            self._peers.give_way()              # is it only the echo of another process's end?

    def close(self):
        """Leave the process group; rank 0, which the others talk to, leaves last."""
        if self._peers:
            self._peers.leave()
            dist.destroy_process_group()
            self._peers = None

    def log(self, text):
        """Print on rank 0, at once."""
        if self.is_main:
            print(text, flush=True)

    def local_batch_size(self, batch_size):
        """How many of the ``batch_size`` videos of a step this process takes.

        Raises:
            UserError: they cannot be divided evenly.
        """
        if batch_size % self.world_size:
            raise UserError("--batch_size %d cannot be divided evenly among %d processes: give a multiple of %d"
                            % (batch_size, self.world_size, self.world_size))
        return batch_size // self.world_size

    def wrap(self, model):
        """The model on this device, and in step with its copies in the other processes."""
        model = model.to(self.device)
        if self.world_size == 1:
            return model
        ids = None if self.kind == "cpu" else [self.device.index]
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def synchronize(self):
        """Wait until the device has done what it was given: a clock read afterwards tells the truth."""
        if self._api:
            self._api.synchronize()

    def reset_peak_memory(self):
        """Start a new measurement for :meth:`peak_memory_mb` (on the CPU there is only the peak since the start)."""
        reset = getattr(self._api, "reset_peak_memory_stats", None) or getattr(
            self._api, "reset_max_memory_allocated", None)
        if reset:
            reset(self.device)

    def peak_memory_mb(self):
        """Most device memory allocated at a time, in MiB; on the CPU the process's resident set."""
        if self._api:
            return self._api.max_memory_allocated(self.device) / 2.0 ** 20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2.0 ** (20 if sys.platform == "darwin" else 10)

    def barrier(self):
        """Wait for all processes, however long rank 0 packs features.

        Through the store, not the device: HCCL and NCCL give up on a collective that starts minutes apart.
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

    def all_reduce_sum(self, tensor):
        """The sum of every process's ``tensor`` (float32, any device, the same shape), where the tensor was."""
        if self.world_size == 1:
            return tensor
        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def gather(self, value):
        """[value of rank 0, value of rank 1, ...] on every process; anything that can be pickled."""
        if self.world_size == 1:
            return [value]
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

    def broadcast(self, value):
        """Rank 0's ``value``, on every process; anything that can be pickled."""
        if self.world_size == 1:
            return value
        data = _packed(value if self.is_main else None)
        size = torch.tensor([data.numel()], device=self.device)
        dist.broadcast(size, 0)
        data = data.to(self.device) if self.is_main else torch.empty(int(size), dtype=torch.uint8, device=self.device)
        dist.broadcast(data, 0)
        return value if self.is_main else pickle.loads(data.cpu().numpy().tobytes())

    def random_state(self):
        """{"cpu": state, "<kind>": state} of the random number generators: tensors, to be saved and set again."""
        state = {"cpu": torch.get_rng_state()}
        if self._api and hasattr(self._api, "get_rng_state"):
            state[self.kind] = self._api.get_rng_state(self.device).cpu()
        return state

    def set_random_state(self, state):
        """Set what :meth:`random_state` gave; the part of a device that is not here is left out."""
        torch.set_rng_state(state["cpu"].cpu())
        if self._api and self.kind in state:
            self._api.set_rng_state(state[self.kind].cpu(), self.device)

    def check_profiler(self, folder):
        """Make the folder of a trace, where it is not empty; UserError where it cannot be, or there is no profiler."""
        if folder:
            profiling.find(self.kind, folder)

    def profiler(self, folder):
        """A context that gives a profiler, which wants one ``step()`` per iteration and leaves a trace in ``folder``.

        It gives None without ``folder`` and on all ranks but 0.
        """
        return profiling.trace(self.kind, folder if self.is_main else "", self.log)


def _packed(value):
    """``value`` pickled, as uint8 [bytes]: what every backend of every version can carry."""
    return torch.from_numpy(np.frombuffer(pickle.dumps(value, protocol=4), dtype=np.uint8).copy())


def setup(opt):
    """Choose the device, join the other processes, and say so in one line. Returns a :class:`Runtime`.

    Args:
        opt: complete dict of options; device, DeviceID, is_distributed, world_size and local_rank are read.

    Raises:
        UserError: the device is not to be had, or the processes do not come together.
    """
    member = Member(opt)
    kind, why = choose(opt["device"])
    device = card(kind, opt["DeviceID"], member)
    if kind != "cpu":
        getattr(torch, kind).set_device(str(device))
    store, peers = join(member, kind, BACKENDS[kind]) if member.world_size > 1 else (None, None)
    runtime = Runtime(kind, device, member, store, peers)
    many = ", %d processes over %s" % (member.world_size, BACKENDS[kind]) if member.world_size > 1 else ""
    runtime.log("device: %s%s%s" % (device, many, " (%s)" % why if why else ""))
    return runtime


def seed_everything(seed):
    """Seed Python's, NumPy's and PyTorch's random numbers; the latter's seeding reaches every device."""
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.manual_seed(seed)
