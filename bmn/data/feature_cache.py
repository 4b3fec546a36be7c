"""The packed feature file: every video's C x T numbers one after another, so that reading one is a single copy.

The file, in order:
    the line MAGIC;
    a line of JSON: {"temporal_scale": T, "feat_dim": C, "dtype": "float32" or "float16",
                     "videos": {name: [size, time of change in ns] of the file it came from, ...}};
    zeros up to the next multiple of 4096 bytes;
    for each video, in the order of "videos", its C x T numbers, little-endian.
"""
import contextlib
import errno
import hashlib
import json
import mmap
import os
import platform
import time

import numpy as np
from tqdm import tqdm

from bmn import parallel
from bmn.errors import UserError
from bmn.files import replacing

try:
    import fcntl
except ImportError:         # no such locks on this system
    fcntl = None

MAGIC = b"BMN packed features, version 1\n"
ALIGNMENT = 4096
RENEW = 256                 # reads after which the map is made anew, so that its pages do not count as ours for ever
FLAWS = 20                  # unusable files after which packing stops looking for more


class PackedFeatures:
    """A packed feature file. ``place`` is its path.

    The file is mapped, so all processes of a machine share one copy in the page cache.

    Args:
        place: the file.
        temporal_scale, feat_dim: T and C that it must have.

    Raises:
        UserError: it is missing, of another kind or version, truncated, or of another T or C.
    """

    def __init__(self, place, temporal_scale, feat_dim):
        self.place, self.temporal_scale, self.feat_dim = place, temporal_scale, feat_dim
        self._map, self._reads = None, 0
        try:
            # Kept open: whoever replaces the file leaves us the old one.
            self._file = open(place, "rb")  # noqa: SIM115
            header = self._header()
        except OSError as error:
            raise UserError("packed features %s cannot be read (%s): check the path and its permissions"
                            % (place, error.strerror)) from None
        self.dtype, self.stamps = np.dtype(header["dtype"]).newbyteorder("<"), header["videos"]
        self._index = {name: index for index, name in enumerate(self.stamps)}
        self._start = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        found = header.get("temporal_scale"), header.get("feat_dim")
        if found != (temporal_scale, feat_dim):
            raise UserError("packed features %s are of T = %d and C = %d, but --temporal_scale is %d and --feat_dim "
                            "%d: give those, or other features" % ((place,) + found + (temporal_scale, feat_dim)))
        size = os.fstat(self._file.fileno()).st_size
        wanted = self._start + len(self.stamps) * self.dtype.itemsize * feat_dim * temporal_scale
        if size != wanted:
            raise UserError("packed features %s are truncated (%d bytes of %d): copy or make the file again"
                            % (place, size, wanted))

    def _header(self):
        if self._file.readline(len(MAGIC)) != MAGIC:
            raise UserError("%s is no packed feature file of this version: check the path" % self.place)
        with contextlib.suppress(ValueError, TypeError, KeyError):
            header = json.loads(self._file.readline().decode("utf-8"))
            if header["dtype"] in ("float32", "float16") and isinstance(header["videos"], dict):
                return header
        raise UserError("packed features %s are truncated or damaged: copy or make the file again" % self.place)

    def __reduce__(self):       # another process opens the file for itself
        return PackedFeatures, (self.place, self.temporal_scale, self.feat_dim)

    def __contains__(self, name):
        return name in self._index

    def names(self):
        """The videos, in the order of the file."""
        return self._index

    def table(self, name):
        """The numbers of a video: (float32 [T, C], True: rows are time)."""
        return self.read(name).T, True

    def read(self, name):
        """float32 [C, T] of a video, a copy of one's own."""
        if self._map is None or self._reads == RENEW:
            content = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            shape = len(self.stamps), self.feat_dim, self.temporal_scale
            self._map, self._reads = np.ndarray(shape, self.dtype, content, self._start), 0
        self._reads += 1
        try:
            return self._map[self._index[name]].astype(np.float32)
        except KeyError:
            raise UserError("video %s is not in %s: give features that have it" % (name, self.place)) from None


def open_cache(opt, source, names, log):
    """The packed features of ``names``, made or brought up to date from ``source`` where that is needed.

    Args:
        opt: complete dict of options: feature_cache says where, feature_cache_dtype how.
        source: object with place, read(name) and stamp(name).
        names: videos that the file must have; it may have more.
        log: called with one line at a time.

    Raises:
        UserError: a feature file cannot be used, or no place takes the packed file.
    """
    places = _places(opt, source)
    for place in places:
        packed = _opened(place, opt)
        if packed is not None and _is_current(packed, source, names):
            return packed
    refusals = []
    for place in places:
        try:
            return _brought_up_to_date(place, opt, source, names, log)
        except UserError as error:
            if not isinstance(error.__cause__, OSError):    # not the place: a feature file
                raise
            refusals.append("%s: %s" % (os.path.dirname(place), error.__cause__.strerror or error.__cause__))
            if place != places[-1]:
                log("features cannot be packed in %s, trying %s" % (refusals[-1], os.path.dirname(places[-1])))
    raise UserError("the %.1f GB of packed features cannot be written (%s): give --feature_cache a folder with room, "
                    "or off" % (_bytes(opt, len(names)) / 1e9, "; ".join(refusals)))


def _places(opt, source):
    """Paths where the packed file may lie, the best first: beside the features, else beside the outputs."""
    place = os.path.abspath(source.place)
    ending = ".%s.packed" % opt["feature_cache_dtype"]
    # Elsewhere several data sets may meet, all of them called csv_mean_100.
    elsewhere = "%s-%s%s" % (os.path.basename(place), hashlib.sha1(place.encode()).hexdigest()[:8], ending)
    if opt["feature_cache"] != "auto":
        return [os.path.join(opt["feature_cache"], elsewhere)]
    beside = os.path.join(os.path.abspath(opt["data_path"]), os.path.basename(place) + ending)
    if os.path.isfile(opt["data_path"]):
        beside = place + ending
    return [beside, os.path.join(os.path.dirname(opt["result_file"]), "feature_cache", elsewhere)]


def _opened(place, opt):
    """The packed features at ``place``; None where there are none, or they are damaged or of another T or C."""
    try:
        packed = PackedFeatures(place, opt["temporal_scale"], opt["feat_dim"])
    except UserError:
        return None
    return packed if packed.dtype == np.dtype(opt["feature_cache_dtype"]) else None


def _is_current(packed, source, names):
    """Whether each of ``names`` is packed as it is now, and nothing is packed whose source is gone."""
    return (all(packed.stamps.get(name) == source.stamp(name) for name in names)
            and all(name in source for name in packed.stamps))


def _brought_up_to_date(place, opt, source, names, log):
    with _alone(place, log):
        packed = _opened(place, opt)        # perhaps somebody else has packed while we waited
        if packed is not None and _is_current(packed, source, names):
            return packed
        if packed is None and os.path.exists(place):
            log("%s is damaged, or of another T or C: it is made anew" % place)
        _build(place, opt, source, names, packed, log)
    return PackedFeatures(place, opt["temporal_scale"], opt["feat_dim"])


@contextlib.contextmanager
def _alone(place, log):
    """Hold the lock of ``place``: one process packs, the others wait and then find it done.

    Without locks on this system or disk all of them pack, each under a name of its own; that only takes longer.
    """
    folder, name = os.path.split(os.path.abspath(place))
    try:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "." + name + ".lock"), "a+") as lock:
            if _locked(lock, log, place):
                _clear_leftovers(folder, name, lock)
            yield
    except OSError as error:
        raise UserError("cannot write %s (%s)" % (place, error.strerror or error)) from error


def _locked(lock, log, place):
    if fcntl is None:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log("another process is packing %s, waiting for it" % place)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise
    return True


def _clear_leftovers(folder, name, lock):
    """Remove what killed processes of this machine left; ``lock`` is held, so nobody here is packing.

    Some disks keep locks within each machine. So the lock file says which machine held it last, and the files of
    another one stay: it may be at work.
    """
    lock.seek(0)
    if lock.read() in ("", platform.node()):
        for leftover in os.listdir(folder):
            if leftover.startswith("." + name + ".") and leftover.endswith(".tmp"):
                os.remove(os.path.join(folder, leftover))
    lock.truncate(0)
    lock.write(platform.node())
    lock.flush()


def _build(place, opt, source, names, packed, log):
    """Write the packed file of ``names`` and of whatever else of ``packed`` is still valid."""
    stamps = {name: source.stamp(name) for name in names}
    kept = set()
    if packed is not None:
        for name, stamp in packed.stamps.items():
            if name in source and stamps.setdefault(name, source.stamp(name)) == stamp:
                kept.add(name)
    dtype = np.dtype(opt["feature_cache_dtype"]).newbyteorder("<")
    header = {"temporal_scale": opt["temporal_scale"], "feat_dim": opt["feat_dim"],
              "dtype": opt["feature_cache_dtype"], "videos": stamps}
    header = MAGIC + json.dumps(header).encode("utf-8") + b"\n"
    start = -(-len(header) // ALIGNMENT) * ALIGNMENT
    item = _bytes(opt, 1)
    log("packing the features of %d videos into %s%s"
        % (len(stamps), place, " (%d of them unchanged)" % len(kept) if packed is not None else ""))
    began = time.time()
    with replacing(place) as temporary:
        with open(temporary, "wb") as handle:
            handle.write(header)
            handle.truncate(start)
            _reserve(handle, start + item * len(stamps))

        def pack(index_and_name):
            index, name = index_and_name
            features = (packed if name in kept else source).read(name)
            with np.errstate(over="ignore"):
                features = features.astype(dtype)
            if not np.isfinite(features).all():
                raise UserError("features of video %s are too large for %s: give --feature_cache_dtype float32"
                                % (name, dtype))
            # Written, not mapped: on a disk that fills up this is an error, a mapping would be the end of the process.
            with open(temporary, "r+b", buffering=0) as handle:
                handle.seek(start + index * item)
                view = memoryview(features).cast("B")
                while view:
                    view = view[handle.write(view):]

        flaws = []
        packed_videos = parallel.outcomes(pack, list(enumerate(stamps)))
        for flaw in tqdm(packed_videos, "packing features", len(stamps), unit="video", disable=None, leave=False):
            if flaw is not None:
                flaws.append(str(flaw))
                if len(flaws) == FLAWS:
                    break
        if flaws:
            raise UserError(flaws[0] + (" (%d%s files are unusable: tools/check_data.py lists them)" % (
                len(flaws), " or more" if len(flaws) == FLAWS else "") if len(flaws) > 1 else ""))
    log("packed in %.0f seconds, %.2f GB" % (time.time() - began, (start + item * len(stamps)) / 1e9))


def _reserve(handle, size):
    """Ask for all the room now: a full disk shows before minutes of work."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    handle.truncate(size)


def _bytes(opt, count):
    return count * opt["temporal_scale"] * opt["feat_dim"] * np.dtype(opt["feature_cache_dtype"]).itemsize
