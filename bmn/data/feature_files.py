"""Reading and writing one feature file, and checking that its table of numbers has the T and C of the options."""
import io
import zipfile
from typing import List

import numpy as np

from bmn.errors import UserError
from bmn.files import replacing

EXTENSIONS = (".csv", ".npy", ".npz")       # the best first, where a video has several files


def read_csv(path: str) -> np.ndarray:
    """The numbers of a CSV file below its header line: float64 [rows, columns].

    Raises:
        UserError: the file is unreadable, has no rows, has rows of different lengths, or holds something else than
            numbers.
    """
    import pandas as pd  # not above, because it takes half a second, and who reads packed features needs none

    try:
        with open(path, "rb") as handle:
            header, _, body = handle.read().partition(b"\n")
    except OSError as error:
        raise UserError("feature file %s cannot be read (%s): check the path and its permissions"
                        % (path, error.strerror)) from None
    columns = header.count(b",") + 1
    body = body.rstrip()
    lines = body.split(b"\n")
    if not body:
        raise UserError("feature file %s has no rows of numbers below its header line: make or unpack it again" % path)
    for number, line in enumerate(lines, 2):
        if line.count(b",") != columns - 1:
            raise UserError("feature file %s has %d columns in line %d and %d in its header line: make or unpack it "
                            "again" % (path, line.count(b",") + 1, number, columns))
    try:        # as one long column, because pandas then reads the same numbers twice as fast
        values = pd.read_csv(io.BytesIO(body.replace(b",", b"\n")), header=None, dtype=np.float64, engine="c",
                             na_filter=False, low_memory=False).values
        return values.reshape(len(lines), columns)
    except ValueError:      # something is wrong, so look at every cell
        return np.array([[_number(cell, path, number, column) for column, cell in enumerate(line.split(b","), 1)]
                         for number, line in enumerate(lines, 2)])


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
    try:
        return float(cell)
    except ValueError:
        raise UserError("feature file %s has %r in line %d, column %d, but a number is needed: make or unpack it "
                        "again" % (path, cell.decode("utf-8", "replace").strip()[:20], line, column)) from None


def read_array(path: str) -> np.ndarray:
    """The numbers of a NumPy file: [rows, columns]. An .npz file must hold a single array.

    Raises:
        UserError: the file is unreadable, holds more than one array, or does not hold a table of numbers.
    """
    where = "feature file " + path
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return numbers(content, where)
        with content:
            if len(content.files) != 1:
                raise UserError("%s holds %d arrays (%s): make a file with a single array"
                                % (where, len(content.files), few(content.files)))
            return numbers(content[content.files[0]], where)
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError("%s is not a readable NumPy file (%s): make it again" % (where, error)) from None


def numbers(array: np.ndarray, where: str) -> np.ndarray:
    """``array`` itself, where it is a table of numbers; ``where`` names its file in error messages.

    Raises:
        UserError: it is no table, or does not hold numbers.
    """
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise UserError("%s holds an array of shape %s and type %s, but a table of T x C numbers is needed"
                        % (where, array.shape, array.dtype))
    return array


def fitted(table: np.ndarray, rows_are_time: bool, temporal_scale: int, feat_dim: int, where: str) -> np.ndarray:
    """float32 [C, T] from a table that is [T, C] or, where the rows are not known to be time, [C, T].

    Args:
        table: numbers [rows, columns].
        rows_are_time: whether the rows are known to be time.
        temporal_scale, feat_dim: T and C.
        where: names the file in error messages.

    Raises:
        UserError: the table has another shape, it is unknown which axis is time, or a number is not finite in float32.
    """
    rows, columns = table.shape
    if (rows, columns) == (temporal_scale, feat_dim):
        if rows == columns and not rows_are_time:
            raise UserError("%s has %d rows and as many columns, so it is unknown which axis is time: store the "
                            "features as CSV, with a row for each position" % (where, rows))
        table = table.T
    elif rows_are_time or (rows, columns) != (feat_dim, temporal_scale):
        raise UserError("%s has %d rows and %d columns, but --temporal_scale is %d and --feat_dim %d: %s"
                        % (where, rows, columns, temporal_scale, feat_dim, _remedy(table.shape, temporal_scale)))
    with np.errstate(over="ignore"):        # the error below names the file
        features = np.ascontiguousarray(table, np.float32)
    if not np.isfinite(features).all():
        channel, position = np.argwhere(~np.isfinite(features))[0]
        raise UserError("%s has %s at position %d of %d, feature %d: extract the features of this video again"
                        % (where, features[channel, position], position + 1, temporal_scale, channel + 1))
    return features


def _remedy(shape, temporal_scale):
    if temporal_scale in shape:     # then the other number is C
        return "give --feat_dim %d" % shape[1 - shape.index(temporal_scale)]
    return "rescale it with tools/prepare_features.py, or give --temporal_scale %d" % shape[0]


def few(names: List[str]) -> str:
    """The first three names of a list, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
