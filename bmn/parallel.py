"""Work on many items by several processes, which end after the item in hand when their parent is gone."""
import contextlib
import multiprocessing
import os
import signal
import warnings
from multiprocessing.connection import Connection, wait
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional

from bmn.errors import UserError

GROUP = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
FEW = 32        # items for which another process is not worth its start
CHUNK = 8       # items that a helper gets at a time
GRACE = 30      # seconds that a data worker goes on after SIGTERM


def processors() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limited(wanted: int, work: int = 1 << 30) -> int:
    """How many of the processes that the user ``wanted`` have anything to do: one for each processor and each item.

    Args:
        wanted: what an option says.
        work: number of items.
    """
    return max(1, min(wanted, processors(), work))


def outcomes(work: Callable[[Any], Any], items: list, processes: Optional[int] = None) -> Iterator[Any]:
    """Call ``work(item)`` for every item, on several processes, in no particular order.

    Args:
        work: function of an item; a closure is welcome, because it is inherited by fork and not pickled.
        items: list; items and what ``work`` returns are pickled.
        processes: how many; None is one for each processor.

    Yields:
        for each item what ``work`` returned, or the UserError that it raised. Any other exception ends the work and
        is raised here.
    """
    processes = min(processes or processors(), 1 + len(items) // FEW)
    if processes == 1:
        for item in items:
            yield _outcome(work, item)
        return
    with Pool(work, processes) as pool:
        for first in range(0, len(items), CHUNK):
            yield from pool.submit(items[first:first + CHUNK])
        yield from pool.drain()


def without_errors(found: Iterable[Any]) -> Iterator[Any]:
    """The same outcomes, but the first UserError among them is raised."""
    for outcome in found:
        if isinstance(outcome, UserError):
            raise outcome
        yield outcome


class Pool:
    """Helper processes that call ``work(item)``, started when they are needed.

    They are started by fork, whatever start method Python prefers, because ``work`` need not be picklable.

    A helper waits at its end of a pipe. However this process ends, the pipe closes, and then the helper ends too.
    Where the system has no fork, this process does the work itself.

    Args:
        work: as in :func:`outcomes`.
        processes: how many helpers at most.
        niceness: added to the niceness of this process.
        remedy: what a user can do when a helper was killed; the end of a sentence.

    Use it in a ``with`` block. Its end drops what was not received, and waits for the items that are being worked on.
    """

    def __init__(self, work: Callable[[Any], Any], processes: int, niceness: int = 0,
                 remedy: str = "run it again with more memory"):
        self.work, self.processes, self.niceness, self.remedy = work, processes, niceness, remedy
        self.helpers: List[multiprocessing.Process] = []
        self._unanswered: Dict[Connection, int] = {}        # items of each helper, by our end of its pipe
        forks = "fork" in multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("fork") if forks else None

    def submit(self, items: list) -> List[Any]:
        """Hand ``items`` to a helper that is idle, and wait for one while all are busy.

        Returns:
            the outcomes that have arrived meanwhile, of these items or earlier ones.

        Raises:
            UserError: a helper was killed. Any exception but UserError that ``work`` raised.
        """
        if self._context is None:
            return [_outcome(self.work, item) for item in items]
        arrived = self._receive(0)
        while len(self.helpers) == self.processes and all(self._unanswered.values()):
            arrived += self._receive()
        pipe = next((pipe for pipe, count in self._unanswered.items() if not count), None) or self._start()
        try:
            pipe.send(items)
        except OSError:
            raise self._lost() from None
        self._unanswered[pipe] = len(items)
        return arrived

    def drain(self) -> Iterator[Any]:
        """Yield the outcomes that are still to come; UserError where a helper was killed."""
        while any(self._unanswered.values()):
            yield from self._receive()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error):
        for pipe in self._unanswered:
            pipe.close()
        for helper in self.helpers:
            helper.join()

    def _start(self) -> Connection:
        ours, theirs = self._context.Pipe()
        helper = self._context.Process(target=self._serve, args=(theirs, [*self._unanswered, ours]), daemon=True)
        # A helper holds signals back for good, because they are the parent's to handle: when it ends, the pipe ends.
        # The warning is of a fork beside threads: a helper needs no lock that they may hold.
        with signals_held(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            helper.start()
        theirs.close()          # so that the death of the helper is the end of the pipe
        self.helpers.append(helper)
        self._unanswered[ours] = 0
        return ours

    def _receive(self, timeout: Optional[float] = None) -> List[Any]:
        """The outcomes that have arrived; waits ``timeout`` seconds for one, None: as long as it takes."""
        arrived = []
        for pipe in wait([pipe for pipe, count in self._unanswered.items() if count], timeout):
            try:
                failed, outcome = pipe.recv()
            except (EOFError, OSError):
                raise self._lost() from None
            if failed:
                raise outcome
            self._unanswered[pipe] -= 1
            arrived.append(outcome)
        return arrived

    def _lost(self) -> UserError:
        return UserError("a helper process died, perhaps for lack of memory: %s" % self.remedy)

    def _serve(self, pipe: Connection, inherited: List[Connection]):
        """The life of a helper."""
        for one in inherited:   # a pipe ends only when no process holds its other end
            one.close()
        os.nice(self.niceness)
        with contextlib.suppress(OSError, EOFError):        # nobody waits for this any more
            while True:
                for item in pipe.recv():
                    try:
                        answer = False, _outcome(self.work, item)
                    except Exception as error:
                        answer = True, error
                    try:
                        pipe.send(answer)
                    except OSError:
                        raise
                    except Exception as error:              # what cannot be pickled
                        pipe.send((True, error))


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """A context in which to start processes: signals to a whole group of them are left to the parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_signals(_worker: int) -> None:
    """A worker_init_fn for data workers, which were started in that context.

    Python itself ends workers that are left over by SIGTERM. So that signal ends one after GRACE seconds, in which the
    parent finishes its step and saves.
    """
    for number in GROUP:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP)


def _outcome(work, item):
    try:
        return work(item)
    except UserError as error:
        return error
