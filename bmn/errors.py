"""Mistakes of the user, as opposed to mistakes of the program."""
import sys


class UserError(ValueError):
    """One sentence for the user: the file or option, what was found, what to do."""


def run_as_program(main):
    """Run ``main()`` and leave the process: a user's mistake is one sentence on stderr and status 1, no traceback."""
    try:
        main()
    except UserError as error:
        # A data worker's error comes with the worker's traceback; the sentence is at its end.
        print("error: %s" % str(error).rsplit("UserError: ", 1)[-1].strip(), file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
