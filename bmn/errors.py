"""Errors that the user can correct, as opposed to errors in the program, and how a program starts and ends."""
import importlib.util
import sys
from typing import Any, Callable

PACKAGES = ("torch", "numpy", "pandas", "matplotlib", "tqdm")       # what every run may need, sooner or later


class UserError(ValueError):
    """One sentence for the user: the file or option, what was found, what to do."""


def command_line(parse: Callable[[], Any], *more_packages: str) -> Any:
    """Return ``parse()``. Each program calls this before it imports anything large, which takes seconds.

    So --help and a mistake in an option are answered at once. A Python package that is missing is named in a sentence
    then, and not in a traceback later.

    Args:
        parse: a function that reads sys.argv, in a module that imports nothing large.
        more_packages: the packages that this program needs besides PACKAGES.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")        # a name of odd bytes is printed as it is
    return run_as_program(lambda: (parse(), _check_packages(PACKAGES + more_packages))[0])


def _check_packages(names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError("%s has no package %s: run this with .venv/bin/python, which `make demo` sets up, or install "
                        "with %s -m pip install -r requirements.txt"
                        % (sys.executable, ", ".join(missing), sys.executable))


def run_as_program(main: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``main(*arguments)``. A UserError ends the process with one sentence on stderr, status 1, no traceback.

    Ctrl-C ends the process with status 130.
    """
    try:
        return main(*arguments)
    except UserError as error:
        # An error in a data worker contains the worker's traceback; the sentence is at its end.
        print("error: %s" % str(error).rsplit("UserError: ", 1)[-1].strip(), file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
