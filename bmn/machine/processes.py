"""One process among many: which one it is, and how it finds the others."""
import contextlib
import datetime
import os
import signal
import socket
import threading
import time
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from bmn.errors import UserError, first_line
from bmn.parallel import GROUP

MASTER = ("127.0.0.1", "29681")         # address and port of rank 0, where the environment does not name them
JOIN_WITHIN = datetime.timedelta(minutes=10)
EXCHANGE_WITHIN = datetime.timedelta(minutes=30)
FOREVER = datetime.timedelta(days=365)


class Member:
    """This process as a member of the run: ``rank`` of ``world_size``, and ``local_rank`` on its machine."""

    def __init__(self, opt: dict):
        """Read the launcher's environment (torchrun, torch.distributed.launch), else the options of the old port.

        Args:
            opt: complete dict of options; is_distributed, world_size and local_rank are read.

        Raises:
            UserError: a value in the environment is not a number, or the numbers contradict each other.
        """
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            self.rank, self.world_size = _number("RANK"), _number("WORLD_SIZE")
            self.local_rank = _number("LOCAL_RANK", opt["local_rank"])
            if opt["world_size"] not in (1, self.world_size):
                raise UserError("--world_size %d, but the launcher started %d processes (WORLD_SIZE): leave the option "
                                "out or make them equal" % (opt["world_size"], self.world_size))
        elif opt["is_distributed"]:
            self.world_size = opt["world_size"]
            self.rank = self.local_rank = opt["local_rank"]
        elif opt["world_size"] > 1:
            raise UserError("--world_size %d without --is_distributed 1: add it, or start with torchrun"
                            % opt["world_size"])
        else:
            self.rank, self.local_rank, self.world_size = 0, 0, 1
        if not 0 <= self.rank < self.world_size:
            raise UserError("this is rank %d of %d processes: --local_rank (or RANK) must be below --world_size (or "
                            "WORLD_SIZE)" % (self.rank, self.world_size))


def _number(name, default=None):
    text = os.environ.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise UserError("%s=%s in the environment is not a number: let the launcher set it" % (name, text)) from None


def connected(timeout: datetime.timedelta, is_there: bool = False) -> Any:
    """A connection of its own to the store, for a thread or a guard: a call through another one may block.

    Args:
        timeout: how long to wait for the store, and for its answers.
        is_there: the store was there already: do not wait for one, because it would be that of another run.

    Raises:
        Exception: of any kind, where the store is not found.
    """
    numbers = int(os.environ["MASTER_PORT"]), int(os.environ["WORLD_SIZE"])
    _wait_for_port(os.environ["MASTER_ADDR"], numbers[0],
                   time.monotonic() + (0 if is_there else timeout.total_seconds()))
    try:
        store = dist.TCPStore(os.environ["MASTER_ADDR"], *numbers, False, timeout, wait_for_workers=False)
    except TypeError:           # before PyTorch 1.9
        store = dist.TCPStore(os.environ["MASTER_ADDR"], *numbers, False, timeout)
    return _of_this_start(store)


def _of_this_start(store):
    """The part of a store that is this run's own.

    A launcher's store outlives the processes that it starts again, and these must not read what the earlier ones left:
    the ports of dead processes, counts of barriers, the wish to stop.
    """
    return dist.PrefixStore("bmn/%s" % os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)


def _wait_for_port(host, port, until):
    """Wait until somebody listens there. Old PyTorch would let no other thread of this process run meanwhile."""
    while True:
        try:
            socket.create_connection((host, port), 5.0).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def _signals_at_once():
    """In this context a signal ends the process at once. Python's handlers would wait, for minutes, until PyTorch's
    rendezvous is over; and there is nothing to save yet."""
    handled = {number: signal.getsignal(number) for number in GROUP
               if threading.current_thread() is threading.main_thread()
               and signal.getsignal(number) not in (signal.SIG_IGN, None)}
    for number in handled:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)


def join(member: Member, kind: str, backend: str) -> Any:
    """Connect to the other processes and make the process group. :class:`peers.Peers` watches over it already.

    Args:
        member: this process.
        kind: the kind of device that this process uses; it must be the same in all processes.
        backend: name of a backend of torch.distributed.

    Returns:
        the key-value store of torch.distributed.

    Raises:
        UserError: the processes cannot connect, or they use different kinds of devices.
    """
    try:
        with _signals_at_once():
            whole, _, _ = next(rendezvous("env://", timeout=JOIN_WITHIN))
            store = _of_this_start(whole)
            store.set("kind/%d" % member.rank, kind)
            kinds = [store.get("kind/%d" % rank).decode() for rank in range(member.world_size)]
        if len(set(kinds)) == 1:
            dist.init_process_group(backend, store=store, rank=member.rank, world_size=member.world_size,
                                    timeout=EXCHANGE_WITHIN)
            whole.set_timeout(FOREVER)          # from here on, the peers end what would wait in vain
            return store
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError("rank %d of %d could not join the others at %s:%s (MASTER_ADDR, MASTER_PORT): %s; "
                        "check that all processes run and have this address"
                        % (member.rank, member.world_size, os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"],
                           first_line(error))) from None
    raise UserError("the processes chose different devices (%s): give the same --device to all"
                    % ", ".join("rank %d %s" % pair for pair in enumerate(kinds)))
