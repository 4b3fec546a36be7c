"""Reading and writing files so that the user is told what is wrong, and nothing half-written bears a final name."""
import contextlib
import json
import os
import tempfile

from bmn.errors import UserError

try:
    import orjson  # a result file of half a million proposals in a fifth of the time
except ImportError:         # Python 3.7 goes without
    orjson = None


@contextlib.contextmanager
def replacing(path, durable=True):
    """Give a temporary path beside ``path``; when the block succeeds it becomes ``path`` in one step.

    A reader, or a process killed at any moment, sees the old file or the new one, whole; with ``durable`` also after
    a power cut, for which the disk is waited for (not for thousands of small files).

    Raises:
        UserError: the folder cannot be made or written to, or the disk is full.
    """
    path = os.path.abspath(path)
    temporary = None
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            prefix="." + os.path.basename(path) + ".", suffix=".tmp", dir=os.path.dirname(path))
        os.close(handle)
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())      # mkstemp makes it private, a result file is for everybody
        if durable:
            _flush_to_disk(temporary)
        os.replace(temporary, path)
        if durable:
            _flush_to_disk(os.path.dirname(path))   # the rename itself must survive a power cut
    except OSError as error:
        raise UserError("cannot write %s (%s): give a path that can be written, with room on its disk"
                        % (path, error.strerror or error)) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.remove(temporary)


def check_writable(path):
    """Make the folder of ``path`` and try that a file can be written there; ``path`` itself is not touched.

    Raises:
        UserError: it cannot.
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(path))):
            pass
        if os.path.isdir(path):
            raise IsADirectoryError(None, "it is a folder")
    except OSError as error:
        raise UserError("cannot write %s (%s): give a path that can be written" % (path, error.strerror)) from error


def check_distinct(source, target):
    """UserError where both are the same file: a conversion would overwrite what it was made from."""
    if os.path.realpath(source) == os.path.realpath(target):
        raise UserError("%s is what is read and what would be written: give another name for the new file" % target)


def read_json(path, what):
    """The content of a JSON file; ``what`` names it for the user ("annotation file (--video_anno)").

    Raises:
        UserError: missing, unreadable, or not JSON.
    """
    try:
        with open(path, "rb") as handle:
            content = handle.read()
        if orjson:
            with contextlib.suppress(orjson.JSONDecodeError):       # what it refuses Python's parser takes or explains
                return orjson.loads(content)
        return json.loads(content.decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError("%s %s does not exist: check the path" % (what, path)) from None
    except OSError as error:
        raise UserError("%s %s cannot be read (%s): check the path and its permissions"
                        % (what, path, error.strerror)) from None
    except (ValueError, RecursionError) as error:
        raise UserError("%s %s is not valid JSON (%s): it may be truncated, fetch or make it again"
                        % (what, path, error)) from None


def write_json(path, content):
    """Write ``content`` as JSON, whole or not at all.

    Raises:
        UserError: as :func:`replacing`.
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
