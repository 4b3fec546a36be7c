"""Reading and writing files. Errors say what is wrong, and a file gets its final name only when it is complete."""
import contextlib
import json
import os
import tempfile
from typing import Any, Iterator

from bmn.errors import UserError
from bmn.inputs import read_bytes

try:
    import orjson  # reads a result file of half a million proposals in a fifth of the time
except ImportError:         # where it is not installed
    orjson = None


@contextlib.contextmanager
def replacing(path: str, durable: bool = True) -> Iterator[str]:
    """Yield a temporary path beside ``path``. When the block succeeds, that file replaces ``path`` in one step.

    If this process is killed, ``path`` still holds the complete old file or the complete new one. With ``durable`` this
    also holds after a power cut. It costs a wait for the disk, which is too slow for thousands of small files.

    Raises:
        UserError: the folder cannot be made, a file cannot be written there, or the disk is full.
    """
    path = os.path.abspath(path)
    temporary = None
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            prefix="." + os.path.basename(path) + ".", suffix=".tmp", dir=os.path.dirname(path))
        os.close(handle)
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())      # because mkstemp makes a file that only its owner can read
        if durable:
            _flush_to_disk(temporary)
        os.replace(temporary, path)
        if durable:
            _flush_to_disk(os.path.dirname(path))   # the rename itself must survive a power cut
    except OSError as error:
        raise UserError("cannot write %s (%s): give a path that can be written, on a disk with free space"
                        % (path, error.strerror or error)) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.remove(temporary)


def check_writable(path: str) -> None:
    """Make the folder of ``path`` and check that a file can be written there. ``path`` itself is not touched.

    Raises:
        UserError: no file can be written there, or ``path`` is a folder.
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(path))):
            pass
        if os.path.isdir(path):
            raise IsADirectoryError(None, "it is a folder")
    except OSError as error:
        raise UserError("cannot write %s (%s): give a path that can be written" % (path, error.strerror)) from error


def check_distinct(source: str, target: str) -> None:
    """Check that two paths are not the same file, because a conversion would overwrite its own input.

    Raises:
        UserError: they are the same file.
    """
    if os.path.realpath(source) == os.path.realpath(target):
        raise UserError("%s is both the input and the output: give another name for the new file" % target)


def read_json(path: str, what: str) -> Any:
    """The content of a JSON file. ``what`` names the file in error messages: "annotation file (--video_anno)".

    Raises:
        UserError: the file is missing, unreadable, or not JSON.
    """
    try:
        content = read_bytes(path, what)
        if orjson:
            with contextlib.suppress(orjson.JSONDecodeError):       # the parser below accepts more and explains more
                return orjson.loads(content)
        return json.loads(content.decode("utf-8-sig"))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError("%s %s is not valid JSON (%s) and may be truncated: fetch or make it again"
                        % (what, path, error)) from None


def write_json(path: str, content: Any) -> None:
    """Write ``content`` as JSON; ``path`` is replaced in one step.

    Raises:
        UserError: as in :func:`replacing`.
    """
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        json.dump(content, handle)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush_to_disk(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
