"""The packed feature file: the numbers of every video in one safetensors file, so that reading some is a single copy.

The layout of safetensors, which others read with ``safetensors.safe_open(path, "np")``:
    8 bytes, little-endian: the length of the header;
    the header, JSON: {video: {"dtype": "F32" or "F16", "shape": [C, T], "data_offsets": [begin, end]}, ...,
        "__metadata__": {"sources": JSON text of {video: [size, time of change in ns] of the file it came from}}},
        filled up with blanks so that the numbers begin at a multiple of 4096 bytes;
    for each video its C x T numbers, little-endian, without gaps.
Features at their own rate, for windows, have the shape [rows, C] instead, so that the rows of a window lie together.
"""
import json
import mmap
import os
from typing import Container, Dict, Iterable, List, NamedTuple, Optional, Tuple

import numpy as np

from bmn.data.feature_files import axis_by_others
from bmn.errors import UserError
from bmn.inputs import open_input
from bmn.values import video_id

ALIGNMENT = 4096
RENEW = 256                 # reads after which the file is mapped again, so that pages stop counting as our memory
LONGEST_HEADER = 100000000  # bytes; the limit of the safetensors library
_DTYPES = {"float32": "F32", "float16": "F16"}
_VERSION_1 = b"BMN packed features, version 1\n"


def header_of(sources: Dict[str, List[int]], temporal_scale: int, feat_dim: int, dtype: str,
              rows: Optional[Dict[str, int]] = None) -> bytes:
    """The beginning of a packed file, up to the numbers of the first video.

    Args:
        sources: {video: [size, time of change in ns]}, in the order of the file.
        dtype: "float32" or "float16".
        rows: {video: number of rows} of features at their own rate; T does not matter then.
    """
    header, end = {"__metadata__": {"sources": json.dumps(sources)}}, 0
    for name in sources:
        begin, end = end, end + video_bytes(rows[name] if rows else temporal_scale, feat_dim, dtype)
        shape = [rows[name], feat_dim] if rows else [feat_dim, temporal_scale]
        header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def video_bytes(temporal_scale: int, feat_dim: int, dtype: str) -> int:
    """Bytes of one video of T positions, or of so many rows, in a packed file."""
    return temporal_scale * feat_dim * np.dtype(dtype).itemsize


def is_of_version_1(path: str) -> bool:
    """Whether this is a packed file as version 1.0 of this program wrote it."""
    try:
        with open_input(path, "packed features") as handle:
            return handle.read(len(_VERSION_1)) == _VERSION_1
    except UserError:
        return False


def stored_name(name: str, names: Container, where: str) -> Optional[str]:
    """The name under which a video is stored among ``names``: its own, or that with or without v_; None: not there.

    Raises:
        UserError: both are there, and it is unknown which to take.
    """
    key = video_id(name)
    stored = [one for one in ("v_" + key, key) if one in names and video_id(one) == key]     # v_v_a is not v_a
    if len(stored) > 1:
        raise UserError("%s has features of %s and of %s, which are the same video: remove one" % (where, *stored))
    return stored[0] if stored else None


class _Place(NamedTuple):
    """Where a video lies: its first number among those of the file, its rows, and whether they are the first axis."""
    begin: int
    rows: int
    rows_first: bool


class PackedFeatures:
    """A packed feature file. It is mapped, so all processes of a machine share one copy in the page cache.

    Args:
        path: the file.
        temporal_scale, feat_dim: T and C that it must have; T = 0: rows at their own rate, any number of them.

    Attributes:
        dtype: "float32" or "float16".
        sources: {video: [size, time of change in ns]} of the files that it was made from; empty in a file of others.

    Raises:
        UserError: it is missing, of another kind, truncated, or of another T or C.
    """

    def __init__(self, path: str, temporal_scale: int, feat_dim: int):
        self.path, self.temporal_scale, self.feat_dim = path, temporal_scale, feat_dim
        self._map, self._reads = None, 0
        with open_input(path, "packed features") as handle:
            # Kept open: whoever replaces the file leaves us the old one.
            self._file = os.fdopen(os.dup(handle.fileno()), "rb")
            size = os.fstat(self._file.fileno()).st_size
            header = self._header(size)
        self._start = self._file.tell()
        try:
            self.sources = dict(json.loads(header.pop("__metadata__", {}).get("sources", "{}")))
            self.dtype, self._index = self._videos(header)
        except UserError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise self._damaged() from None
        wanted = self._start + sum(video_bytes(one.rows, feat_dim, self.dtype) for one in self._index.values())
        if size != wanted:
            raise UserError("packed features %s are truncated (%d bytes of %d): copy or make the file again"
                            % (path, size, wanted))

    def _header(self, size):
        length = int.from_bytes(self._file.read(8), "little")
        if is_of_version_1(self.path):
            raise UserError("%s was packed by version 1.0 of this program: give the folder of its features instead, "
                            "which is packed again" % self.path)
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise UserError("%s is no packed feature file (safetensors), or is truncated: check the path" % self.path)
        try:
            header = json.loads(self._file.read(length).decode("utf-8"))
        except (ValueError, RecursionError):
            raise self._damaged() from None
        if not isinstance(header, dict):
            raise self._damaged()
        return header

    def _videos(self, header) -> Tuple[str, Dict[str, _Place]]:
        """(dtype, {video: its place in the file}); UserError where a video is of another T or C."""
        names = {kind: dtype for dtype, kind in _DTYPES.items()}
        dtype = names[next(iter(header.values()))["dtype"]] if header else "float32"
        # In a file of others, what the tables beside a square one show; ours have the rows first.
        shapes = [tensor["shape"] for tensor in header.values()]
        axis = 0 if self.sources or self.temporal_scale else axis_by_others(self.feat_dim, shapes)
        index, places = {}, []
        for name, tensor in header.items():
            begin, end = tensor["data_offsets"]
            if type(begin) is not int or type(end) is not int:
                raise ValueError("no whole numbers")
            rows, rows_first = self._rows_of(name, tensor["shape"], axis)
            if tensor["dtype"] != _DTYPES[dtype] or end != begin + video_bytes(rows, self.feat_dim, dtype):
                raise ValueError("another size, or another type")
            index[name] = _Place(begin // np.dtype(dtype).itemsize, rows, rows_first)
            places.append((begin, end))
        places.sort()
        if [begin for begin, _ in places] != [0, *(end for _, end in places)][:len(places)]:
            raise ValueError("a gap")
        if self.sources and self.sources.keys() != index.keys():
            raise ValueError("names of other sources")
        return dtype, index

    def _rows_of(self, name, shape, axis):
        """(number of rows, whether the rows come first) of a tensor; of a square one, ``axis`` says it or is None."""
        lengths, dim = list(map(int, shape)), self.feat_dim
        if self.temporal_scale:
            if lengths != [dim, self.temporal_scale]:
                raise UserError("packed features %s have the shape %s for video %s, but --feat_dim is %d and "
                                "--temporal_scale %d (C x T): give those, or other features"
                                % (self.path, shape, name, dim, self.temporal_scale))
            return self.temporal_scale, False
        if len(lengths) != 2 or dim not in lengths or min(lengths) < 1:
            raise UserError("packed features %s have the shape %s for video %s, but --window needs rows of --feat_dim "
                            "%d numbers: give that, or other features" % (self.path, shape, name, dim))
        if lengths != [dim, dim]:
            return (lengths[0], True) if lengths[1] == dim else (lengths[1], False)
        if axis is None:
            raise UserError("packed features %s have the shape %s for video %s, and no other video shows which axis is "
                            "time: give a folder of CSV files, with a row for each snippet" % (self.path, shape, name))
        return dim, axis == 0

    def _damaged(self):
        return UserError("packed features %s are damaged, or hold no float32 or float16 tensor for each video: copy "
                         "or make the file again" % self.path)

    def __reduce__(self):       # another process opens the file for itself
        return PackedFeatures, (self.path, self.temporal_scale, self.feat_dim)

    def __contains__(self, name: str) -> bool:
        return stored_name(name, self._index, self.path) is not None

    def names(self) -> Iterable[str]:
        """The videos, in the order of the file."""
        return self._index

    def table(self, name: str) -> Tuple[np.ndarray, bool]:
        """The numbers of a video: (float32 [T, C], True: rows are time)."""
        return self.read(name).T, True

    def rows(self, name: str) -> int:
        """Number of rows of a video, or T; UserError where it is not in the file."""
        return self._place(name).rows

    def _place(self, name):
        stored = stored_name(name, self._index, self.path)
        if stored is None:
            raise UserError("video %s is not in %s: give features that have it" % (name, self.path))
        return self._index[stored]

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """float32 [C, T] of a video, or [C, n] of some of its rows; a copy that the caller may change."""
        if self._map is None or self._reads == RENEW:
            content = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            dtype = np.dtype(self.dtype).newbyteorder("<")
            count = (len(content) - self._start) // dtype.itemsize
            self._map, self._reads = np.ndarray(count, dtype, content, self._start), 0
        self._reads += 1
        place = self._place(name)
        numbers = self._map[place.begin:place.begin + place.rows * self.feat_dim]
        if place.rows_first:
            return numbers.reshape(place.rows, self.feat_dim)[rows].T.astype(np.float32, order="C")
        return numbers.reshape(self.feat_dim, place.rows)[:, rows].astype(np.float32, order="C")
