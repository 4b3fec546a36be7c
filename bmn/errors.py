"""Errors that the user can correct, as opposed to errors in the program, and how a program starts and ends."""
import contextlib
import importlib.util
import os
import signal
import sys
import threading
from typing import Any, Callable

from bmn.output import lasting_output

INTERRUPTED = 128 + 2       # the status that a shell gives to a process that Ctrl-C ended
TERMINATED = 128 + 15       # the status that a shell gives to a process that SIGTERM ended
PACKAGES = ("torch", "numpy", "pandas", "matplotlib", "tqdm")       # what every run may need, sooner or later


class UserError(ValueError):
    """One sentence for the user: the file or option, what was found, what to do."""


class Stopped(SystemExit):
    """All processes of the run end together, after a signal, and have saved what there was."""


def first_line(error: Any) -> str:
    """The first line of an error, or of its text, for a sentence; its type where it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def command_line(parse: Callable[[], Any], *more_packages: str) -> Any:
    """Return ``parse()``. Each program calls this before it imports anything large, which takes seconds.

    So --help and a mistake in an option are answered at once. A Python package that is missing is named in a sentence
    then, and not in a traceback later.

    Args:
        parse: a function that reads sys.argv, in a module that imports nothing large.
        more_packages: the packages that this program needs besides PACKAGES.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:       # and not where Ctrl-C is ignored
        signal.signal(signal.SIGINT, _interrupted)      # until run_as_program: a traceback of imports tells nothing
    _prefer_fork()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")        # a name of odd bytes is printed as it is
    return _run(lambda: (parse(), _check_packages(PACKAGES + more_packages))[0])


def _interrupted(number, frame):
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def _prefer_fork():
    """Data workers are forked, unless the caller has chosen another way, by set_start_method.

    Python 3.14 would take forkserver. Then each worker imports PyTorch, for seconds, at the beginning of each epoch,
    and a forked one has it. The workers use no device and start no thread, so a fork is safe. On macOS it is not.
    """
    import multiprocessing  # not above: Ctrl-C is not quiet yet while this module is imported
    if sys.platform.startswith("linux"):
        with contextlib.suppress(RuntimeError):     # the caller has chosen
            multiprocessing.set_start_method("fork")


def _check_packages(names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError("%s has no package %s: run this with .venv/bin/python, which `make demo` sets up, or install "
                        "with %s -m pip install -r requirements.txt"
                        % (sys.executable, ", ".join(missing), sys.executable))


def run_as_program(main: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``main(*arguments)``. A UserError ends the process with one sentence on stderr, status 1, no traceback.

    Ctrl-C ends the process with status 130, SIGTERM and SIGUSR1 with 143; files that are half-written are removed.
    Where the output cannot be written, the work goes on without it, and the status says so at the end.
    """
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is _interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in ("SIGTERM", "SIGUSR1"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), _terminated)
    return _run(main, *arguments)


def _terminated(number, frame):
    signal.signal(number, signal.SIG_IGN)       # launchers send it twice
    print("ended by %s" % signal.Signals(number).name, file=sys.stderr, flush=True)
    sys.exit(TERMINATED)


def _run(main, *arguments):
    with lasting_output():
        return _in_words(main, *arguments)


def _in_words(main, *arguments):
    try:
        return main(*arguments)
    except UserError as error:
        # An error in a data worker contains the worker's traceback; the sentence is at its end.
        sentence = str(error).rsplit("UserError: ", 1)[-1].strip()
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        sentence = ("a process that loads data died (%s), perhaps for lack of memory, in /dev/shm too: lower "
                    "--num_workers, or run it again with more memory" % str(error).partition(". ")[0].strip(". "))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    print("error: %s" % sentence, file=sys.stderr, flush=True)
    sys.exit(1)
