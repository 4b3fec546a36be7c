"""Reading and writing one CSV file of features, and checking that a table has the T and C of the options."""
import io
from typing import Iterable, List, Optional, Sequence

import numpy as np

from bmn.errors import UserError
from bmn.files import replacing
from bmn.inputs import open_input, read_bytes
from bmn.values import counted

GROUPS = 4                          # into which the network's first layer splits the features (models.py)
UNNAMED = (b"", b"Unnamed: 0")      # what pandas calls the column of its index


def read_csv(path: str) -> np.ndarray:
    """The numbers of a CSV file: float64 [rows, columns].

    A first line of numbers is a row; any other is a header, also the whole numbers 0, 1, 2, ..., C - 1, with which
    pandas names columns. A first column that the header does not name, and that counts 0, 1, 2, ..., is the index that
    pandas writes: it is left out.

    Raises:
        UserError: the file is unreadable, has no rows, has rows of different lengths, or holds something else than
            numbers.
    """
    import pandas as pd  # not above, because it takes half a second, and who reads packed features needs none

    content = read_bytes(path, "feature file")
    header, body, first = _split(content)
    columns = (header if header is not None else body.split(b"\n", 1)[0]).count(b",") + 1
    lines = body.split(b"\n")
    if not body:
        raise UserError("feature file %s has no rows of numbers%s: make or unpack it again"
                        % (path, " below its header line" if header is not None else ""))
    for number, line in enumerate(lines, first):
        if line.count(b",") != columns - 1:
            raise UserError("feature file %s has %s in line %d and %d in its %s line: make or unpack it again"
                            % (path, counted(line.count(b",") + 1, "column"), number, columns,
                               "first" if header is None else "header"))
    try:        # as one long column, because pandas then reads the same numbers twice as fast
        values = pd.read_csv(io.BytesIO(body.replace(b",", b"\n")), header=None, dtype=np.float64, engine="c",
                             na_filter=False, low_memory=False).values
        table = values.reshape(len(lines), columns)
    except ValueError:      # something is wrong, so look at every cell
        table = np.array([[_number(cell, path, number, column) for column, cell in enumerate(line.split(b","), 1)]
                          for number, line in enumerate(lines, first)])
    counts = columns > 1 and np.array_equal(table[:, 0], np.arange(len(table)))
    if counts and header is not None and _is_unnamed(header):
        return np.ascontiguousarray(table[:, 1:])
    return table


def _split(content):
    """(header line or None, the lines of numbers, number of the first of them in the file)"""
    content = content[3:] if content.startswith(b"\xef\xbb\xbf") else content       # Excel writes a byte order mark
    line, _, rest = content.partition(b"\n")
    cells = line.strip().split(b",")
    if None in map(_value, cells) or cells == [b"%d" % column for column in range(len(cells))]:
        return line, rest.rstrip(), 2
    return None, content.rstrip(), 1


def _is_unnamed(header):
    return header.split(b",", 1)[0].strip().strip(b'"') in UNNAMED


def index_column(path: str) -> bool:
    """Whether the header line of a CSV file does not name its first column; False where it cannot be read."""
    try:
        with open_input(path, "feature file") as handle:
            return _is_unnamed(handle.readline(1 << 20)) and b"," in handle.readline(1 << 20)
    except UserError:
        return False


def write_csv(path: str, features: np.ndarray, digits: int = 12) -> None:
    """Write a feature file in the published form: a header line f0,f1,... and a row of numbers for each position.

    Args:
        features: [positions, C].
        digits: significant digits of each number.

    Raises:
        UserError: the file cannot be written.
    """
    line = ",".join(["%%.%dg" % digits] * features.shape[1]) + "\n"
    with replacing(path, durable=False) as temporary, open(temporary, "w") as handle:
        handle.write(",".join("f%d" % channel for channel in range(features.shape[1])) + "\n")
        handle.writelines(line % tuple(row) for row in features.tolist())


def _number(cell, path, line, column):
    value = _value(cell)
    if value is None:
        raise UserError("feature file %s has %r in line %d, column %d, but a number is needed: make or unpack it "
                        "again" % (path, cell.decode("utf-8", "replace").strip()[:20], line, column))
    return value


def _value(cell: bytes) -> Optional[float]:
    """The number that C's strtod reads; None where it reads none. Python alone would take 1_0 for 10."""
    try:
        return None if b"_" in cell else float(cell)
    except ValueError:
        return None


def scale_of(opt: dict) -> int:
    """T that features must have, or 0: with --window they have any number of rows, at their own rate."""
    return 0 if opt.get("window") else opt["temporal_scale"]


def fitted(table: np.ndarray, rows_are_time: bool, temporal_scale: int, feat_dim: int, where: str,
           columns_of_all: int = 0) -> np.ndarray:
    """float32 [C, T] from a table that is [T, C] or, where the rows are not known to be time, [C, T].

    Args:
        table: numbers [rows, columns].
        rows_are_time: whether the rows are known to be time.
        temporal_scale, feat_dim: T and C; T = 0: any number of rows, at their own rate.
        where: names the file in error messages.
        columns_of_all: what :func:`own_columns` returned; it is used where T = 0.

    Raises:
        UserError: the table has another shape, it is unknown which axis is time, or a number is not finite in float32.
    """
    rows, columns = table.shape
    if not temporal_scale:
        known = "--feat_dim is" if columns_of_all == feat_dim else "the first of them has C ="
        table = as_rows(table, rows_are_time, columns_of_all, "the numbers of " + where, known)
        table = filled_columns(table, feat_dim).T
        temporal_scale = table.shape[1]
    elif (rows, columns) == (temporal_scale, feat_dim):
        if rows == columns and not rows_are_time:
            raise UserError("%s has %s and as many columns, and nothing beside it shows which axis is time: store the "
                            "features as CSV, with a row for each position" % (where, counted(rows, "row")))
        table = table.T
    elif rows_are_time or (rows, columns) != (feat_dim, temporal_scale):
        raise UserError("%s has %s and %s, but --temporal_scale is %d and --feat_dim %d: %s"
                        % (where, counted(rows, "row"), counted(columns, "column"), temporal_scale, feat_dim,
                           _remedy(table.shape, temporal_scale)))
    with np.errstate(over="ignore"):        # the error below names the file
        features = np.ascontiguousarray(table, np.float32)
    if not np.isfinite(features).all():
        channel, position = np.argwhere(~np.isfinite(features))[0]
        value = table[channel, position]
        raise UserError("%s has %s at position %d of %d, feature %d%s: extract the features of this video again"
                        % (where, value, position + 1, temporal_scale, channel + 1,
                           ", which is too large for float32" if np.isfinite(value) else ""))
    return features


def as_rows(table: np.ndarray, rows_are_time: bool, feat_dim: int, where: str,
            origin: str = "--feat_dim is") -> np.ndarray:
    """[rows, C], a row for each snippet at their own rate, from a table.

    Args:
        table: [rows, columns].
        rows_are_time: whether the rows are known to be time; otherwise the axis of length ``feat_dim`` is C.
        feat_dim: C, without columns of zeros; 0 means the number of columns.
        where: names the features in error messages.
        origin: says in error messages where C comes from.

    Raises:
        UserError: no axis has the length C, it is unknown which axis is time, or a number is not finite.
    """
    if time_axis(table.shape, rows_are_time, feat_dim, where, origin):
        table = table.T
    if not len(table) or not np.isfinite(table).all():
        raise UserError("%s are empty or hold a number that is not finite: extract this video again" % where)
    return table


def time_axis(shape: Sequence[int], rows_are_time: bool, feat_dim: int, where: str,
              origin: str = "--feat_dim is") -> int:
    """The axis of a table of this shape that is time, 0 or 1. Arguments and errors are those of :func:`as_rows`."""
    rows, columns = shape
    if not feat_dim or (columns in (feat_dim, 0) and rows_are_time):
        return 0
    if rows == columns == feat_dim and not rows_are_time:
        raise UserError("%s have as many snippets as features (%d), and nothing beside them shows which axis is time: "
                        "store them as CSV, with a row for each snippet" % (where, rows))
    for axis in (0,) if rows_are_time else (0, 1):
        if shape[1 - axis] == feat_dim:
            return axis
    raise UserError("%s have %s and %s, but %s %d: give the right --feat_dim, or extract all videos in the same way"
                    % (where, counted(rows, "row"), counted(columns, "column"), origin, feat_dim))


def axis_by_others(length: int, shapes: Iterable[Sequence[int]]) -> Optional[int]:
    """The axis that is time in a table of as many rows as columns, 0 or 1, by the tables beside it.

    Args:
        length: of both axes.
        shapes: of the others. Those in which one axis has that length show which one holds the features.

    Returns:
        None where no other table shows it, or where they contradict each other.
    """
    axes = {1 - list(shape).index(length) for shape in shapes if len(shape) == 2 and list(shape).count(length) == 1}
    return axes.pop() if len(axes) == 1 else None


def _remedy(shape, temporal_scale):
    if temporal_scale in shape:     # then the other number is C
        channels = shape[1 - shape.index(temporal_scale)]
        if channels % GROUPS:
            return ("tools/prepare_features.py fills its columns up with zeros to a multiple of %d; then give "
                    "--feat_dim %d" % (GROUPS, filled_up(channels)))
        return "give --feat_dim %d" % channels
    return ("rescale it with tools/prepare_features.py, give --temporal_scale %d, or --window for features at their "
            "own rate" % shape[0])


def filled_up(feat_dim: int) -> int:
    """The next multiple of 4 from C on: the first layer of the network has 4 groups of features."""
    return -(-feat_dim // GROUPS) * GROUPS


def own_columns(shape: Sequence[int], feat_dim: int) -> int:
    """How many columns the tables of a set have: C, or those of its first table, where C of them fill up to C.

    All the others must have as many. Otherwise a video with columns missing would pass for one that was filled up.

    Args:
        shape: of the first table.
        feat_dim: C of the network, a multiple of 4.
    """
    return shape[-1] if feat_dim not in shape and filled_up(shape[-1]) == feat_dim else feat_dim


def filled_columns(table: np.ndarray, feat_dim: int) -> np.ndarray:
    """``table`` [rows, columns] with columns of zeros up to C: they add nothing to what the network computes."""
    return np.pad(table, ((0, 0), (0, feat_dim - table.shape[1])), "constant")


def few(names: List[str]) -> str:
    """The first three names of a list, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
