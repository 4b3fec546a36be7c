"""Errors that the user can correct, as opposed to errors in the program."""
import sys
from typing import Any, Callable


class UserError(ValueError):
    """One sentence for the user: the file or option, what was found, what to do."""


def run_as_program(main: Callable[[], Any]) -> None:
    """Call ``main()``. A UserError ends the process with one sentence on stderr, status 1 and no traceback.

    Ctrl-C ends the process with status 130.
    """
    try:
        main()
    except UserError as error:
        # An error in a data worker contains the worker's traceback; the sentence is at its end.
        print("error: %s" % str(error).rsplit("UserError: ", 1)[-1].strip(), file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
