"""The machine as the rest of the program sees it: moving, waiting and summing over all processes of a run."""
import contextlib
import json
import pickle
import resource
import sys
import time
from typing import Any, Callable, ContextManager, Dict, List, Optional

import numpy as np
import torch
import torch.distributed as dist

from bmn.errors import Stopped, UserError, first_line
from bmn.machine import profiling
from bmn.machine.processes import Member

KEPT_DECISIONS = 1000       # of the last ones; every process has read the earlier ones


class Runtime:
    """One process's view of the machine. ``device.setup`` makes it, and it is passed on as an argument.

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
        if error is None or kind is Stopped:
            self.close()            # all processes do. One that ends alone, after a signal too, must not wait for them.
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
        """A context in which this process waits for no other one, but perhaps for a disk. See :class:`peers.Peers`."""
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

    def wrap(self, model: torch.nn.Module, use: Optional[Callable] = None) -> torch.nn.Module:
        """The model on this device. With several processes DistributedDataParallel wraps it, to average gradients.

        DistributedDataParallel adds gradients in another order from its second step on. From three processes on, that
        changes the last digit, and a run that goes on would not be the uninterrupted one. So its first step is made
        here, and leaves no trace: ``use(model)`` gives a number that depends on all weights.
        """
        model = model.to(self.device)
        if self.world_size == 1:
            return model
        ids = None if self.kind == "cpu" else [self.device.index]
        wrapper = torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)
        if use:
            use(wrapper).backward()
            model.zero_grad()
        return wrapper

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
        name, pause = "barrier/%d" % self._barriers, 0.001
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
        name = "decision/%d"
        if self.is_main:
            self._store.set(name % self._decisions, json.dumps(decision))
            if self._decisions > KEPT_DECISIONS and hasattr(self._store, "delete_key"):
                self._store.delete_key(name % (self._decisions - KEPT_DECISIONS))
            return decision
        return json.loads(self._store.get(name % self._decisions).decode())

    def ask_to_stop(self, why: str) -> None:
        """Let :meth:`asked_to_stop` on rank 0 give ``why``, the name of a signal."""
        if self.world_size > 1:
            self._store.set("stop", why)
            self._store.add("stops", 1)
        self._stop = why

    def asked_to_stop(self) -> str:
        """What any process has given to :meth:`ask_to_stop`; "" where none has. For rank 0."""
        if not self._stop and self.world_size > 1 and self._store.add("stops", 0):
            self._stop = self._store.get("stop").decode()
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
                            "checkpoint" % first_line(error)) from None

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
