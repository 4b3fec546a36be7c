"""The watch of each process over the others, so that all of them end together.

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
from typing import Iterator

from bmn.machine.processes import JOIN_WITHIN, MASTER, Member, connected
from bmn.parallel import signals_held

TELL_WITHIN = datetime.timedelta(seconds=10)    # a guard tries so long to reach the store
BEAT = 0.5                              # seconds between two signs of life
TOLD_AFTER = 10.0                       # seconds after which rank 0 says for whom it waits at the start
GRACE_SECONDS = 5.0
MOST_FILES = 2 ** 16                    # numbers of open files that a guard closes
JOINED = b"j"                           # what a guard hears when its process has found the store
IDLE = 0.01                             # share of a processor below which a process does nothing


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
        self._worked = None                             # (time, processor seconds until then), while it waits alone
        self._guard = _Guard(member.rank)
        os.register_at_fork(after_in_child=_close_connections)
        self._talking, watching = (threading.Thread(target=task, name="peers", daemon=True)
                                   for task in (self._talk, self._wait_for_answers))
        self._talking.start()
        watching.start()

    def ready(self) -> None:
        """Wait until every process has given a sign of life: from then on, one that gives no more stands still."""
        store = connected(JOIN_WITHIN)
        self._guard.has_joined()
        for rank in range(self.world_size):
            while not store.add("beat/%d" % rank, 0):
                time.sleep(BEAT / 10)

    def leave(self) -> None:
        """Say goodbye before this process ends. Rank 0, which may hold the store, waits for those of the others."""
        self._leaving.set()
        store = connected(JOIN_WITHIN)
        store.add("goodbye/%d" % self.rank, 1)
        for rank in range(self.world_size) if self.rank == 0 else ():
            while not store.add("goodbye/%d" % rank, 0):
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
        self._alone_since = time.monotonic()
        try:
            yield
        finally:
            self._alone_since = None

    def _talk(self):
        """Show that this process lives, and look for what the others or their guards say."""
        try:
            store = connected(JOIN_WITHIN)
        except Exception:           # the rendezvous fails as well, and says so
            return
        try:
            store.set("machine/%d" % self.rank, platform.node())
            self._main = "rank 0 on machine %s" % store.get("machine/0").decode()
            before = began = time.monotonic()
            missing = range(self.world_size) if self.rank == 0 else ()
            while not self._silent.is_set():
                store.add("beat/%d" % self.rank, 1)
                if store.add("ends", 0):
                    self._end(store.get("end").decode(), store)
                now = time.monotonic()
                missing = [rank for rank in missing if not store.add("beat/%d" % rank, 0)]
                if missing and now - began > TOLD_AFTER:
                    print("rank 0 waits at %s:%s for the %d of %d processes that have not come (ranks %s), until %d "
                          "minutes have passed" % (
                              os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], len(missing), self.world_size,
                              ", ".join(map(str, missing)), JOIN_WITHIN.total_seconds() // 60), flush=True)
                    missing = ()
                still = self._standing_still(store, now, now - before > 10 * BEAT)
                if still is not None:
                    _tell(store, "rank %d on machine %s stands still: it has given no sign of life, or no work was "
                          "done, for %g seconds (--patience)"
                          % (still, store.get("machine/%d" % still).decode(), self.patience))
                self._answered = before = now
                self._silent.wait(BEAT if still is None else 0)
        except Exception:           # every version of PyTorch has its own
            if not self._leaving.is_set():
                self._end("%s ended before the run was done (its own message, if it left one, says why)"
                          % ("the launcher of rank 0" if _launcher_holds_store() else self._main), None)

    def _standing_still(self, store, now, we_were_stopped):
        """The number of a process that stands still, or None. Rank 0 looks at all, the others at rank 0 and itself."""
        if self._does_nothing(now):
            return self.rank
        for rank in range(self.world_size) if self.rank == 0 else (0,):
            number = store.add("beat/%d" % rank, 0)
            if number and (we_were_stopped or number != self._seen.get(rank, (0, 0))[0]):
                self._seen[rank] = number, now
            elif number and now - self._seen[rank][1] > self.patience and not store.add("goodbye/%d" % rank, 0):
                return rank
        return None

    def _does_nothing(self, now):
        """Whether this process waits alone for too long. What it or its data workers do counts, however slow it is."""
        began = self._alone_since
        if began is None or now - began <= self.patience / 2:
            self._worked = None
            return False
        work = _processor_seconds()
        before, earlier = self._worked = self._worked or (now, work)
        if now - before <= self.patience / 2:
            return False
        self._worked = now, work
        return work - earlier < IDLE * (now - before)

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
                store.add("read", 1)
                until = time.monotonic() + 3 * BEAT
                while self.rank == 0 and store.add("read", 0) < self.world_size and time.monotonic() < until:
                    time.sleep(BEAT / 10)
        self._guard.dismiss()
        sys.stdout.flush()
        os._exit(1)                         # because the main thread may be waiting in a collective


def _launcher_holds_store():
    """Whether torchrun holds the store, and not rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _processor_seconds():
    """What this process and its children, the data workers, have used; itself alone where there is no /proc."""
    seconds = time.process_time()
    with contextlib.suppress(OSError):
        for task in os.listdir("/proc/self/task"):
            with open("/proc/self/task/%s/children" % task) as handle:
                children = handle.read().split()
            for child in children:
                with contextlib.suppress(OSError), open("/proc/%s/stat" % child) as handle:
                    user, system = handle.read().rpartition(")")[2].split()[11:13]
                    seconds += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return seconds


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
    if store.add("reasons", 1) == 1:
        store.set("end", why)
        store.add("ends", 1)


class _Guard:
    """A process that waits for the end of this one and tells the others of it, unless it was dismissed before."""

    def __init__(self, rank):
        ours, self._pipe = os.pipe()
        with signals_held():                # and held for good in the guard: they are for the process that is guarded
            self._process = os.fork()
            if not self._process:
                self._watch(rank, ours)
        os.close(ours)
        os.register_at_fork(after_in_child=self._close)     # a data worker must not keep the pipe open

    def _watch(self, rank, ours):
        """The life of a guard."""
        with contextlib.suppress(BaseException):
            os.dup2(ours, 0)
            for number in (1, 2):           # so that it keeps nothing open that others wait for
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            os.closerange(3, max(MOST_FILES, ours + 1, self._pipe + 1))
            joined, news = False, os.read(0, 1)
            while news == JOINED:
                joined, news = True, os.read(0, 1)
            if not news and (rank or _launcher_holds_store()):      # otherwise the store ends with rank 0
                _tell(connected(TELL_WITHIN, joined), "rank %d on machine %s ended before the run was done (its own "
                      "message, if it left one, says why)" % (rank, platform.node()))
        os._exit(0)

    def has_joined(self):
        with contextlib.suppress(OSError):
            os.write(self._pipe, JOINED)

    def dismiss(self):
        with contextlib.suppress(OSError):
            os.write(self._pipe, b".")
            os.waitpid(self._process, 0)
        self._close()

    def _close(self):
        pipe, self._pipe = self._pipe, -1
        if pipe >= 0:
            os.close(pipe)
