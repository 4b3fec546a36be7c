"""Reading and writing files. Errors say what is wrong, and a file gets its final name only when it is complete."""
import contextlib
import gc
import json
import os
import tempfile
from typing import Any, Dict, Iterator

from bmn.errors import UserError
from bmn.inputs import read_bytes

try:
    import orjson  # reads a result file of half a million proposals in a fifth of the time
except ImportError:         # where it is not installed
    orjson = None

PIECE = 1 << 18             # bytes of text that are looked at at once: they fit the cache of a processor
BEFORE_A_COLON = b'" \t\r\n'                  # bytes between the name of a value and its colon


@contextlib.contextmanager
def replacing(path: str, durable: bool = True) -> Iterator[str]:
    """Yield a temporary path beside ``path``. When the block succeeds, that file replaces ``path`` in one step.

    If this process is killed, ``path`` still holds the complete old file or the complete new one. With ``durable`` this
    also holds after a power cut. It costs a wait for the disk, which is too slow for thousands of small files.

    Where ``path`` is a link, the file that it leads to is replaced.

    Raises:
        UserError: the folder cannot be made, a file cannot be written there, the disk is full, or ``path`` is a folder,
            a device or the like.
    """
    path = os.path.realpath(path)
    temporary = None
    try:
        _refuse_what_is_no_file(path)
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
    """Check that a file can be written at ``path``, or in the first of its folders that is there. Nothing is made.

    Raises:
        UserError: no file can be written there, or ``path`` is a folder, a device or the like.
    """
    try:
        path = os.path.realpath(path)
        _refuse_what_is_no_file(path)
        with tempfile.TemporaryFile(dir=_folder_that_is_there(path)):
            pass
    except (OSError, ValueError) as error:      # ValueError: a name with a zero byte
        raise UserError("cannot write %s (%s): give a path that can be written"
                        % (path, getattr(error, "strerror", None) or error)) from error


def _folder_that_is_there(path):
    folder = os.path.dirname(path)
    while True:
        try:
            os.stat(folder)
            return folder
        except FileNotFoundError:       # a run makes it when it writes; what is in the way raises another error
            folder = os.path.dirname(folder)


def _refuse_what_is_no_file(path):
    """Replacing it would remove a folder or, for the superuser, a device such as /dev/null from the machine."""
    if os.path.lexists(path) and not os.path.isfile(path):
        raise OSError(None, "it is a folder" if os.path.isdir(path) else "it is no regular file")


def check_outputs(outputs: Dict[str, str], inputs: Dict[str, str]) -> None:
    """Check that every output can be written, and that none is an input or another output.

    Args:
        outputs, inputs: {what a path is, as the user knows it: path}.

    Raises:
        UserError: a path cannot be written, or two are the same file.
    """
    seen = {os.path.realpath(path): what for what, path in inputs.items()}
    for what, path in outputs.items():
        check_writable(path)
        other = seen.setdefault(os.path.realpath(path), what)
        if other != what:
            raise UserError("%s and %s are the same file, %s: give another name for one of them" % (other, what, path))


def inside(folder: str, name: str, ending: str) -> str:
    """``<folder>/<name><ending>``, where ``name`` comes from data: an annotation or feature file that may be foreign.

    Raises:
        UserError: the path would lie outside the folder.
    """
    parts = name.replace(os.sep, "/").split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name or os.path.splitdrive(name)[0]:
        raise UserError("a video is called %.80r, which as a file would not lie in %s: rename it in the data"
                        % (name, folder))
    return os.path.join(folder, name + ending)


def read_json(path: str, what: str) -> Any:
    """The content of a JSON file. ``what`` names the file in error messages: "annotation file (--video_anno)".

    Raises:
        UserError: the file is missing, unreadable, or not JSON, or an object in it has a name twice: a parser keeps
            only the last, and a video would be lost without a word.
    """
    try:
        raw = read_bytes(path, what)
        content = _parsed(raw)
        if _names_in_text(raw) != _names(content):      # the text has more of them, or what looks like a name
            json.loads(raw.decode("utf-8-sig"), object_pairs_hook=lambda pairs: _each_once(pairs, what, path))
        return content
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError("%s %s is not valid JSON (%s) and may be truncated: fetch or make it again"
                        % (what, path, error)) from None


def _parsed(raw):
    if orjson:
        with contextlib.suppress(orjson.JSONDecodeError):       # the parser below accepts more and explains more
            return orjson.loads(raw)
    return json.loads(raw.decode("utf-8-sig"))


def _names_in_text(raw):
    """Number of colons that follow a quotation mark or a space: the names in JSON text, and such colons in strings."""
    import numpy as np  # not above, because --help must not wait for it

    text, count, wanted = np.frombuffer(raw, np.uint8), 0, np.isin(np.arange(256), list(BEFORE_A_COLON))
    for first in range(0, len(text) - 1, PIECE):
        before, after = text[first:first + PIECE], text[first + 1:first + PIECE + 1]
        count += int(wanted[before[:len(after)][after == ord(":")]].sum())
    return count


def _names(content):
    """Number of names in parsed JSON, or fewer: what lies within the objects of a list is not looked at, for speed."""
    if type(content) is dict:
        return len(content) + sum(map(_names, content.values()))
    if type(content) is list and content and type(content[0]) is dict:
        return sum([len(one) for one in content if type(one) is dict])
    return 0


def _each_once(pairs, what, path):
    """The dict of the (name, value) of a JSON object."""
    content = {}
    for name, value in pairs:
        if name in content:
            raise UserError("%s %s has %.80r twice in one place, of which only the last would count: remove or rename "
                            "one" % (what, path, name))
        content[name] = value
    return content


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Switch garbage collection off. Half a million proposals are a million live objects; searching them takes long."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


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
