"""One process among many: finding the others, and ending together.

When a process dies or stands still, the whole run must end soon and say which one it was. Collectives notice it late,
on cards after minutes, or report it in a page of C++. So each process shows that it lives by a number in the store of
torch.distributed, which it raises twice a second: no port is needed but MASTER_PORT. A process that dies cannot say so
itself. Its guard does, a tiny process that waits for the end of a pipe.
"""
import contextlib
import datetime
import multiprocessing
import os
import platform
import socket
import sys
import threading
import time
from typing import Any, Iterator

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from bmn.errors import UserError
from bmn.parallel import ignore_signals

MASTER = ("127.0.0.1", "29681")         # address and port of rank 0, where the environment does not name them
JOIN_WITHIN = datetime.timedelta(minutes=10)
EXCHANGE_WITHIN = datetime.timedelta(minutes=30)
FOREVER = datetime.timedelta(days=365)
TELL_WITHIN = datetime.timedelta(seconds=10)    # a guard tries so long to reach the store
BEAT = 0.5                              # seconds between two signs of life
GRACE_SECONDS = 5.0
MOST_FILES = 2 ** 16                    # numbers of open files that a guard closes
IDLE = 0.01                             # share of a processor below which a process does nothing


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


def _connected(timeout):
    """A connection of its own to the store, for a thread or a guard: a call through another one may block."""
    numbers = int(os.environ["MASTER_PORT"]), int(os.environ["WORLD_SIZE"])
    _wait_for_port(os.environ["MASTER_ADDR"], numbers[0], time.monotonic() + timeout.total_seconds())
    try:
        return dist.TCPStore(os.environ["MASTER_ADDR"], *numbers, False, timeout, wait_for_workers=False)
    except TypeError:           # before PyTorch 1.9
        return dist.TCPStore(os.environ["MASTER_ADDR"], *numbers, False, timeout)


def _wait_for_port(host, port, until):
    """Wait until somebody listens there. Old PyTorch would let no other thread of this process run meanwhile."""
    while True:
        try:
            socket.create_connection((host, port), BEAT * 10).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(BEAT / 5)


def _name(text):
    """The name of an entry in the store. A launcher's store outlives the processes that it starts again."""
    return "bmn/%s/%s" % (os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), text)


def join(member: Member, kind: str, backend: str) -> Any:
    """Connect to the other processes and make the process group. The :class:`Peers` of this process watch already.

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
        store, _, _ = next(rendezvous("env://", timeout=JOIN_WITHIN))
        store.set("bmn/kind/%d" % member.rank, kind)
        kinds = [store.get("bmn/kind/%d" % rank).decode() for rank in range(member.world_size)]
        if len(set(kinds)) == 1:
            dist.init_process_group(backend, store=store, rank=member.rank, world_size=member.world_size,
                                    timeout=EXCHANGE_WITHIN)
            store.set_timeout(FOREVER)          # from here on, the peers end what would wait in vain
            return store
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError("rank %d of %d could not join the others at %s:%s (MASTER_ADDR, MASTER_PORT): %s; "
                        "check that all processes run and have this address"
                        % (member.rank, member.world_size, os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"],
                           (str(error) or repr(error)).splitlines()[0])) from None
    raise UserError("the processes chose different devices (%s): give the same --device to all"
                    % ", ".join("rank %d %s" % pair for pair in enumerate(kinds)))


class Peers:
    """The watch over the other processes: it ends this process when one of them is lost or stands still.

    It begins before the processes have found each other, so that they do not wait for one that has failed already.

    Args:
        member: this process.
        patience: seconds without a sign of life after which a process stands still.
    """

    def __init__(self, member: Member, patience: float):
        os.environ.setdefault("MASTER_ADDR", MASTER[0])
        os.environ.setdefault("MASTER_PORT", MASTER[1])
        os.environ.update(RANK=str(member.rank), WORLD_SIZE=str(member.world_size))
        self.rank, self.world_size, self.patience = member.rank, member.world_size, patience
        self._leaving, self._silent, self._alone_since = threading.Event(), threading.Event(), None
        self._main = "rank 0"
        self._answered, self._seen = None, {}           # time of the store's last answer; {rank: (number, its time)}
        self._guard = _Guard(member.rank)
        os.register_at_fork(after_in_child=_close_connections)
        self._talking, watching = (threading.Thread(target=task, name="peers", daemon=True)
                                   for task in (self._talk, self._wait_for_answers))
        self._talking.start()
        watching.start()

    def ready(self) -> None:
        """Wait until every process has given a sign of life: from then on, one that gives no more stands still."""
        store = _connected(JOIN_WITHIN)
        for rank in range(self.world_size):
            while not store.add(_name("beat/%d" % rank), 0):
                time.sleep(BEAT / 10)

    def leave(self) -> None:
        """Say goodbye before this process ends. Rank 0, which may hold the store, waits for those of the others."""
        self._leaving.set()
        store = _connected(JOIN_WITHIN)
        store.add(_name("goodbye/%d" % self.rank), 1)
        for rank in range(self.world_size) if self.rank == 0 else ():
            while not store.add(_name("goodbye/%d" % rank), 0):
                time.sleep(BEAT / 10)
        self.fall_silent()
        self._guard.dismiss()

    def fall_silent(self) -> None:
        """Give no more signs of life, because this process ends. A thread that is in PyTorch's store then aborts it."""
        self._silent.set()
        self._talking.join(10 * BEAT)

    def give_way(self) -> None:
        """Wait after a failed exchange: if a process was lost, the watch notices it now and ends this process."""
        time.sleep(GRACE_SECONDS)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """In this context the process waits for no other one. If it also does nothing for too long, it stands still."""
        self._alone_since = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            self._alone_since = None

    def _talk(self):
        """Show that this process lives, and look for what the others or their guards say."""
        try:
            store = _connected(JOIN_WITHIN)
        except Exception:           # the rendezvous fails as well, and says so
            return
        try:
            store.set(_name("machine/%d" % self.rank), platform.node())
            self._main = "rank 0 on machine %s" % store.get(_name("machine/0")).decode()
            before = time.monotonic()
            while not self._silent.is_set():
                store.add(_name("beat/%d" % self.rank), 1)
                if store.add(_name("ends"), 0):
                    self._end(store.get(_name("end")).decode(), store)
                now = time.monotonic()
                still = self._standing_still(store, now, now - before > 10 * BEAT)
                if still is not None:
                    _tell(store, "rank %d on machine %s stands still: it has given no sign of life, or no work was "
                          "done, for %g seconds (--patience)"
                          % (still, store.get(_name("machine/%d" % still)).decode(), self.patience))
                self._answered = before = now
                self._silent.wait(BEAT if still is None else 0)
        except Exception:           # every version of PyTorch has its own
            if not self._leaving.is_set():
                launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"     # it holds the store
                self._end("%s ended before the run was done (its own message, if it left one, says why)"
                          % ("the launcher of rank 0" if launcher else self._main), None)

    def _standing_still(self, store, now, we_were_stopped):
        """The number of a process that stands still, or None. Rank 0 looks at all, the others at rank 0 and itself."""
        if self._alone_since is not None:
            began, work = self._alone_since
            if now - began > self.patience and time.process_time() - work < IDLE * (now - began):
                return self.rank
        for rank in range(self.world_size) if self.rank == 0 else (0,):
            number = store.add(_name("beat/%d" % rank), 0)
            if number and (we_were_stopped or number != self._seen.get(rank, (0, 0))[0]):
                self._seen[rank] = number, now
            elif number and now - self._seen[rank][1] > self.patience and not store.add(_name("goodbye/%d" % rank), 0):
                return rank
        return None

    def _wait_for_answers(self):
        """End this process where the store itself gives no answer: its process stands still, or the cable is cut."""
        before = time.monotonic()
        while not self._silent.wait(BEAT):
            now = time.monotonic()
            if now - before > 10 * BEAT and self._answered is not None:
                self._answered = now        # this process itself was stopped, and does not know about the others
            before = now
            if self._answered is not None and now - self._answered > self.patience:
                self._end("%s has not answered at %s:%s for %g seconds (--patience): it stands still, or the network "
                          "is cut" % (self._main, os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"],
                                      self.patience), None)

    def _end(self, why, store):
        print("error: %s: rank %d on machine %s stops as well" % (why, self.rank, platform.node()), file=sys.stderr,
              flush=True)
        for child in multiprocessing.active_children():     # data workers, because nothing else would end them
            child.kill()
        with contextlib.suppress(Exception):
            if store is not None:           # rank 0 may hold the store: it ends when the others have read why
                store.add(_name("read"), 1)
                until = time.monotonic() + 3 * BEAT
                while self.rank == 0 and store.add(_name("read"), 0) < self.world_size and time.monotonic() < until:
                    time.sleep(BEAT / 10)
        self._guard.dismiss()
        sys.stdout.flush()
        os._exit(1)                         # because the main thread may be waiting in a collective


def _close_connections():
    """In a forked data worker: the end of its parent must be the end of the connections that the parent had."""
    for number in map(int, os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):              # no socket
            one = socket.socket(fileno=number)
            if one.family in (socket.AF_INET, socket.AF_INET6):
                one.close()
            else:
                one.detach()


def _tell(store, why):
    """Tell all processes why the run ends; the first reason counts."""
    if store.add(_name("reasons"), 1) == 1:
        store.set(_name("end"), why)
        store.add(_name("ends"), 1)


class _Guard:
    """A process that waits for the end of this one and tells the others of it, unless it was dismissed before."""

    def __init__(self, rank):
        ours, self._pipe = os.pipe()
        self._process = os.fork()
        if not self._process:
            ignore_signals()                # those that a whole group gets are for the process that is guarded
            os.dup2(ours, 0)
            for number in (1, 2):           # so that it keeps nothing open that others wait for
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            os.closerange(3, max(MOST_FILES, ours + 1, self._pipe + 1))
            with contextlib.suppress(BaseException):
                if not os.read(0, 1):
                    _tell(_connected(TELL_WITHIN), "rank %d on machine %s ended before the run was done (its own "
                          "message, if it left one, says why)" % (rank, platform.node()))
            os._exit(0)
        os.close(ours)
        os.register_at_fork(after_in_child=self._close)     # a data worker must not keep the pipe open

    def dismiss(self):
        with contextlib.suppress(OSError):
            os.write(self._pipe, b".")
            os.waitpid(self._process, 0)
        self._close()

    def _close(self):
        pipe, self._pipe = self._pipe, -1
        if pipe >= 0:
            os.close(pipe)
