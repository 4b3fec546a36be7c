"""The feature cache: which packed file belongs to a folder of features, and making it again when sources change."""
import contextlib
import errno
import hashlib
import os
import platform
import time
from typing import Any, Callable, List

import numpy as np

from bmn import parallel
from bmn.data.feature_files import scale_of
from bmn.data.packed_features import PackedFeatures, header_of, is_of_version_1, video_bytes
from bmn.errors import UserError
from bmn.files import replacing
from bmn.progress import progress, size_text
from bmn.values import counted

try:
    import fcntl
except ImportError:         # this system has no such locks
    fcntl = None

ENDING = ".safetensors"
FLAWS = 20                  # unusable files after which packing stops looking for more


def open_cache(opt: dict, source: Any, names: List[str], log: Callable[[str], None]) -> PackedFeatures:
    """The packed features of ``names``. The file is made from ``source`` where it is missing or out of date.

    Args:
        opt: complete dict of options; feature_cache says where the file is, feature_cache_dtype of which type.
        source: object with path, read(name), stamp(name) and ``name in source``.
        names: videos that the file must have; it may have more.
        log: called with one line at a time.

    Raises:
        UserError: a feature file cannot be used, or the packed file cannot be written in any of its folders.
    """
    paths = _paths(opt, source)
    for path in paths:
        packed = _opened(path, opt)
        if packed is not None and _is_current(packed, source, names):
            return packed
    refusals = []
    for path in paths:
        try:
            return _brought_up_to_date(path, opt, source, names, log)
        except UserError as error:
            if not isinstance(error.__cause__, OSError):    # the error is about a feature file and not this folder
                raise
            refusals.append("%s: %s" % (os.path.dirname(path), error.__cause__.strerror or error.__cause__))
            if path != paths[-1]:
                log("features cannot be packed in %s, trying %s" % (refusals[-1], os.path.dirname(paths[-1])))
    raise UserError("the packed features%s cannot be written (%s): give --feature_cache a folder with free space, or "
                    "off" % (" of %s" % size_text(video_bytes(*_form(opt)) * len(names)) if _form(opt)[0] else "",
                             "; ".join(refusals)))


def _form(opt):
    """(T, or 0 for features at their own rate; C; type)"""
    return scale_of(opt), opt["feat_dim"], opt["feature_cache_dtype"]


def _paths(opt, source):
    """Paths that the packed file may have, the best first: beside the features, else beside the outputs."""
    path = os.path.abspath(source.path)
    ending = "%s.%s%s" % (".rows" if opt["window"] else "", opt["feature_cache_dtype"], ENDING)
    # Another folder may hold the files of several data sets, which are all called csv_mean_100.
    elsewhere = "%s-%s%s" % (os.path.basename(path), hashlib.sha1(os.fsencode(path)).hexdigest()[:8], ending)
    if opt["feature_cache"] != "auto":
        return [os.path.join(opt["feature_cache"], elsewhere)]
    beside = os.path.join(os.path.abspath(opt["data_path"]), os.path.basename(path) + ending)
    if os.path.isfile(opt["data_path"]):
        beside = path + ending
    return [beside, os.path.join(os.path.dirname(opt["result_file"]), "feature_cache", elsewhere)]


def _opened(path, opt):
    """The packed features at ``path``; None where they are missing, damaged, or of another T, C or type."""
    try:
        packed = PackedFeatures(path, *_form(opt)[:2])
    except UserError:
        return None
    return packed if packed.dtype == opt["feature_cache_dtype"] else None


def _why_not(path, opt):
    """Why :func:`_opened` returned None for a file that is there: a sentence without its remedy."""
    try:
        return "%s holds %s" % (path, PackedFeatures(path, *_form(opt)[:2]).dtype)
    except UserError as error:
        return str(error).rpartition(": ")[0]


def _is_current(packed, source, names):
    """Whether each of ``names`` is packed in its present state, and every packed video still has a source."""
    return (all(packed.sources.get(name) == source.stamp(name) for name in names)
            and all(name in source for name in packed.sources))


def _brought_up_to_date(path, opt, source, names, log):
    with _alone(path, log):
        packed = _opened(path, opt)         # another process may have made it while we waited
        if packed is not None and _is_current(packed, source, names):
            return packed
        if packed is None and os.path.exists(path):
            log("%s: the file is made again" % _why_not(path, opt))
        _build(path, opt, source, names, packed, log)
        _remove_version_1(path, log)
    return PackedFeatures(path, *_form(opt)[:2])


def _remove_version_1(path, log):
    """Remove the packed file that version 1.0 left here: the new one replaces it."""
    old = path[:-len(ENDING)] + ".packed"
    if is_of_version_1(old):
        with contextlib.suppress(OSError):
            os.remove(old)
            log("removed %s, which version 1.0 of this program had packed" % old)


@contextlib.contextmanager
def _alone(path, log):
    """Hold the lock of ``path``: one process packs, and the others wait and then find the file.

    Where this system or disk has no locks, every process packs under its own temporary name. That only takes longer.
    """
    folder, name = os.path.split(os.path.abspath(path))
    try:
        os.makedirs(folder, exist_ok=True)
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(open(os.path.join(folder, "." + name + ".lock"), "a+"))
            locked = _locked(lock, log, path)
            while locked and not _is_there(lock):       # whoever held it could not pack, and removed it
                lock = stack.enter_context(open(lock.name, "a+"))
                locked = _locked(lock, log, path)
            if locked:
                _clear_leftovers(folder, name, lock)
            try:
                yield
            finally:
                if locked and not os.path.exists(path):
                    os.remove(lock.name)
    except OSError as error:
        raise UserError("cannot write %s (%s)" % (path, error.strerror or error)) from error


def _is_there(lock):
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.stat(lock.name), os.fstat(lock.fileno()))
    except FileNotFoundError:
        return False


def _locked(lock, log, path):
    if fcntl is None:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log("another process is packing %s, waiting for it" % path)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise
    return True


def _clear_leftovers(folder, name, lock):
    """Remove temporary files of killed processes. ``lock`` is held, so no other process of this machine is packing.

    On some disks a lock holds only within one machine. So the lock file says which machine held it last. If that was
    another machine, the files stay, because it may still be packing.
    """
    lock.seek(0)
    if lock.read() in ("", platform.node()):
        for leftover in os.listdir(folder):
            if leftover.startswith("." + name + ".") and leftover.endswith(".tmp"):
                os.remove(os.path.join(folder, leftover))
    lock.truncate(0)
    lock.write(platform.node())
    lock.flush()


def _build(path, opt, source, names, packed, log):
    """Write the packed file of ``names``, and of the other videos in ``packed`` that are still valid."""
    sources = {name: source.stamp(name) for name in names}
    kept = set()
    if packed is not None:
        for name, stamp in packed.sources.items():
            if name in source and sources.setdefault(name, source.stamp(name)) == stamp:
                kept.add(name)
    dtype = np.dtype(opt["feature_cache_dtype"]).newbyteorder("<")
    rows = None if _form(opt)[0] else dict(_rows_of(source, list(sources)))
    header = header_of(sources, *_form(opt), rows)
    begins = np.cumsum([len(header)] + [video_bytes(rows[name] if rows else _form(opt)[0], *_form(opt)[1:])
                                        for name in sources]).tolist()
    total = begins.pop()
    log("packing the features of %s into %s%s"
        % (counted(len(sources), "video"), path, " (%d of them unchanged)" % len(kept) if packed is not None else ""))
    began = time.time()
    with replacing(path) as temporary:
        with open(temporary, "wb") as handle:
            handle.write(header)
            _reserve(handle, total)

        def pack(index_and_name):
            index, name = index_and_name
            features = (packed if name in kept else source).read(name)
            if rows:
                features = np.ascontiguousarray(features.T)
                if len(features) != rows[name]:
                    raise UserError("the features of video %s have changed while they were read: start again" % name)
            with np.errstate(over="ignore"):
                features = features.astype(dtype)
            if not np.isfinite(features).all():
                raise UserError("features of video %s are too large for %s: give --feature_cache_dtype float32"
                                % (name, dtype))
            # The file is not mapped for writing, because a full disk would then kill the process without an error.
            with open(temporary, "r+b", buffering=0) as handle:
                handle.seek(begins[index])
                view = memoryview(features).cast("B")
                while view:
                    view = view[handle.write(view):]

        flaws = []
        packed_videos = parallel.outcomes(pack, list(enumerate(sources)))
        for flaw in progress(packed_videos, "packing features", len(sources), "video", opt["log_seconds"], log):
            if flaw is not None:
                flaws.append(str(flaw))
                if len(flaws) == FLAWS:
                    break
        if flaws:
            raise UserError(flaws[0] + (" (%d%s files are unusable: tools/check_data.py lists them)" % (
                len(flaws), " or more" if len(flaws) == FLAWS else "") if len(flaws) > 1 else ""))
    log("packed in %.0f seconds, %s" % (time.time() - began, size_text(total)))


def _rows_of(source, names):
    """(name, number of rows) of each video."""
    return parallel.without_errors(parallel.outcomes(lambda name: (name, source.rows(name)), names))


def _reserve(handle, size):
    """Reserve all the space on the disk now, so that a full disk shows before minutes of work."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    handle.truncate(size)
