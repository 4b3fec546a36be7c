"""The one place where users' files are opened for reading.

A path may name anything: a folder, a pipe that never ends, a device, a file larger than the memory. Only regular files
are opened, their size is known before memory is taken, and what is wrong is said in one sentence.
"""
import contextlib
import io
import os
import stat
from typing import BinaryIO, Iterator, Optional, TextIO

from bmn.errors import UserError

KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
         (stat.S_ISSOCK, "a socket"))


def check_input(path: str, what: str, remedy: str = "check the path") -> None:
    """Check that a file can be read, before the work that needs it.

    Args:
        path: the file.
        what: names it in the sentence: an option, or "feature file".
        remedy: what to do where it does not exist.

    Raises:
        UserError: it is missing, no regular file, or may not be read.
    """
    with open_input(path, what, remedy):
        pass


@contextlib.contextmanager
def open_input(path: str, what: str, remedy: str = "check the path") -> Iterator[BinaryIO]:
    """Open a regular file to read its bytes. Arguments and errors are those of :func:`check_input`.

    An error while the block reads is reported in the same way.
    """
    try:
        with _opened(path, what) as handle:
            yield handle
    except FileNotFoundError:
        raise UserError("%s %s does not exist: %s" % (what, path, remedy)) from None
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and (isinstance(error, UserError) or "null" not in str(error)):
            raise
        raise UserError("%s %s cannot be read (%s): check the path and its permissions"
                        % (what, path, getattr(error, "strerror", None) or error)) from None


def _opened(path, what):
    _insist_on_a_regular_file(os.stat(path), path, what)
    # Without waiting: in between, the file may have become a pipe.
    handle = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    try:
        _insist_on_a_regular_file(os.fstat(handle.fileno()), path, what)
    except UserError:
        handle.close()
        raise
    return handle


def _insist_on_a_regular_file(status, path, what):
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in KINDS if is_kind(status.st_mode)), "something else")
        raise UserError("%s %s is %s and not a file: give a file" % (what, path, kind))


def read_bytes(path: str, what: str, remedy: str = "check the path") -> bytes:
    """All bytes of a file that fits the memory. Arguments and errors are those of :func:`check_input`."""
    with open_input(path, what, remedy) as handle:
        check_size(os.fstat(handle.fileno()).st_size, "%s %s" % (what, path))
        return handle.read()


@contextlib.contextmanager
def open_text(path: str, what: str, remedy: str = "check the path") -> Iterator[TextIO]:
    """Open a text file in UTF-8, with or without a byte order mark, for the module csv."""
    with open_input(path, what, remedy) as handle:
        check_size(os.fstat(handle.fileno()).st_size, "%s %s" % (what, path))
        yield io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")


def check_size(size: int, what: str) -> None:
    """Insist that ``size`` bytes fit the memory of this machine.

    Raises:
        UserError: they do not; ``what`` is the beginning of the sentence.
    """
    memory = _memory()
    if memory is not None and size > memory:
        raise UserError("%s needs %.0f GB, more than the %.0f GB of this machine: it is damaged, or of another kind"
                        % (what, size / 1e9, memory / 1e9))


def _memory() -> Optional[int]:
    """Bytes of this machine's memory; None where that is not known."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
