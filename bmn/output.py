"""What a program prints: the work goes on where it cannot be written any more."""
import contextlib
import os
import sys
from typing import Any, Iterator

NOBODY_READS = 128 + 13     # the status that a shell gives to a process that SIGPIPE ended


class Output:
    """A stream whose text is dropped from the first failure on: a log on a full disk must not end a training of days.

    Args:
        stream: sys.stdout or sys.stderr.

    Attributes:
        status: with which the program must end; 0 while all went well. Not the error, whose traceback holds the loop
            in which it was printed, and that its data workers.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self.status = 0

    def write(self, text: str) -> int:
        """Write, or drop, a text."""
        self._do(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Write what is still held, or drop it."""
        self._do(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _do(self, action, *arguments):
        try:
            action(*arguments)
        except OSError as error:
            if self.status:
                raise
            self.status = NOBODY_READS if isinstance(error, BrokenPipeError) else 1
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())    # and so what the stream still holds
            if self.status == 1:
                print("what is printed is lost (%s), the work goes on" % error.strerror, file=sys.stderr, flush=True)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """In this context stdout and stderr are an :class:`Output`.

    Raises:
        SystemExit: at the end, where stdout failed: with status 1, or quietly with that of SIGPIPE where its reader has
            left, as ``head`` does.
    """
    before, ended = (sys.stdout, sys.stderr), None
    sys.stdout, sys.stderr = (stream and Output(stream) for stream in before)       # None where it is closed
    try:
        yield
    except SystemExit as error:
        ended = error
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        status = sys.stdout.status if sys.stdout else 0
        sys.stdout, sys.stderr = before
    if status and (ended is None or not ended.code):
        sys.exit(status)
    if ended is not None:
        raise ended
