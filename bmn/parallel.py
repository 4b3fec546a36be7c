"""Work on many files by all processors of the machine, over as soon as whoever asked for it is gone."""
import multiprocessing
import os
import signal
from multiprocessing.connection import wait

from bmn.errors import UserError

FEW = 32        # items for which another process is not worth its start


def processors():
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(work, items, processes=None):
    """Call ``work(item)`` for every item, in several processes, in no order.

    Args:
        work: any function of an item, of small results; a closure is welcome, for it is forked.
        items: list.
        processes: how many; None is one for each processor.

    Yields:
        for each item what ``work`` returned, or the UserError that it raised. Any other exception ends it all and is
        raised here.
    """
    processes = min(processes or processors(), 1 + len(items) // FEW)
    if processes == 1 or "fork" not in multiprocessing.get_all_start_methods():
        for item in items:
            yield _outcome(work, item)
        return
    context = multiprocessing.get_context("fork")
    children, ends = [], []
    try:
        for number in range(processes):
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=_child, args=(work, items[number::processes], theirs, ends + [ours]))
            child.daemon = True
            child.start()
            theirs.close()      # so that the death of the child is the end of the pipe
            children.append(child)
            ends.append(ours)
        yield from _received(ends)
    finally:
        for child in children:
            child.terminate()
            child.join()


def _received(ends):
    while ends:
        for end in wait(ends):
            try:
                outcome = end.recv()
            except EOFError:
                raise UserError("a helper process died, perhaps for lack of memory: run it again with more "
                                "memory") from None
            if outcome is None:
                ends.remove(end)
            elif isinstance(outcome, Exception):
                raise outcome
            else:
                yield outcome[0]


def _outcome(work, item):
    try:
        return work(item)
    except UserError as error:
        return error


def _child(work, items, end, inherited):
    for one in inherited:           # a pipe breaks when nobody can read it: the parent alone shall be able to
        one.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        for item in items:
            end.send((_outcome(work, item),))
        end.send(None)
    except BrokenPipeError:         # the parent was killed: nobody waits for this any more
        pass
    except Exception as error:
        end.send(error)
