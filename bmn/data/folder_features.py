"""A folder with one feature file for each video."""
import contextlib
import os
from typing import Dict, List, Optional, Tuple

import numpy as np

from bmn.data.array_files import ARRAY_EXTENSIONS, array_shape, read_array
from bmn.data.feature_files import axis_by_others, fitted, index_column, own_columns, read_csv, time_axis
from bmn.data.hdf5_features import stamp_of
from bmn.data.packed_features import stored_name
from bmn.errors import UserError
from bmn.extracted import is_list, made_in

EXTENSIONS = (".csv", *ARRAY_EXTENSIONS)        # the best first, where a video has several files
SUBSETS = ("train", "training", "val", "validation", "valid", "test", "testing")     # folders of subsets, in any case


class FolderFeatures:
    """A folder with one file for each video: <video>.csv, .npy, .npz, .pt or .pkl, there or in folders of subsets.

    Args:
        path: the folder.
        temporal_scale, feat_dim: T and C that :meth:`read` insists on; T = 0: any number of rows.
        files: {video: file name}; None means all files in the folder.
    """

    def __init__(self, path: str, temporal_scale: int, feat_dim: int, files: Optional[Dict[str, str]] = None):
        self.path, self.temporal_scale, self.feat_dim = path, temporal_scale, feat_dim
        self._files, self._axes, self._columns = files, {}, None

    def names(self) -> Dict[str, str]:
        """{video: file name}. The folder is listed at the first call.

        Raises:
            UserError: the folder cannot be read, or two folders of subsets have the same video.
        """
        if self._files is None:
            try:
                files, folders = self._listed("")
                self._files = _best(files)
                for folder in folders:
                    for name, file in _best(self._listed(folder)[0]).items():
                        if self._files.setdefault(name, file) != file:
                            raise UserError("feature folder %s has video %s twice, as %s and %s: remove one"
                                            % (self.path, name, self._files[name], file))
            except OSError as error:
                raise UserError("feature folder %s cannot be read (%s): check the path and its permissions"
                                % (self.path, error.strerror)) from None
        return self._files

    def _listed(self, folder):
        """(names of the feature files, names of folders of subsets) in ``folder`` of the path."""
        with os.scandir(os.path.join(self.path, folder)) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]          # macOS makes ._v_a.csv
        there = {entry.name for entry in entries}
        files = [os.path.join(folder, entry.name) for entry in entries if entry.name.endswith(EXTENSIONS)
                 and not entry.is_dir() and not is_list(entry.name, there)]
        return files, sorted(entry.name for entry in entries if entry.is_dir() and entry.name.lower() in SUBSETS)

    def __contains__(self, name: str) -> bool:
        return stored_name(name, self.names(), self.path) is not None

    def stamp(self, name: str) -> List[int]:
        """[size, time of change in ns] of the file of a video; UserError where it cannot be read."""
        return stamp_of(self._path(name))

    def table(self, name: str) -> Tuple[np.ndarray, bool]:
        """The numbers of a video as in its file: (float [rows, columns], whether the rows are known to be time).

        Raises:
            UserError: the file is missing or cannot be used.
        """
        path = self._path(name)
        if path.endswith(".csv"):
            return read_csv(path), True
        table = read_array(path)
        axis = self._time_axis(path, table.shape)
        return (table.T, True) if axis == 1 else (table, axis == 0)

    def read(self, name: str) -> np.ndarray:
        """float32 [C, T] of a video; UserError where its file cannot be used."""
        return fitted(*self.table(name), self.temporal_scale, self.feat_dim, "feature file " + self._path(name),
                      self.columns())

    def columns(self) -> int:
        """How many columns the files have, as :func:`own_columns` says; UserError where the first cannot be used."""
        if self._columns is None:
            first = min(self.names())
            self._columns = own_columns(array_shape(self._path(first)) or self.table(first)[0].shape, self.feat_dim)
        return self._columns

    def rows(self, name: str) -> int:
        """Number of rows of a video, or T; UserError where its file cannot be used."""
        path = self._path(name)
        shape = array_shape(path)
        if shape is None or len(shape) != 2:
            return self.read(name).shape[1]
        known = self._time_axis(path, shape) is not None        # then both axes are of the same length, or it is 0
        return shape[time_axis(shape, known, self.columns(), "the numbers of feature file " + path)]

    def _time_axis(self, path, shape):
        """The axis that is time in the array of a file, where more than its own shape shows it, else None: what our own
        extraction wrote has a row for each snippet, and a square table is like the other files of its kind."""
        if made_in(os.path.dirname(path)):
            return 0
        if shape[0] != shape[1]:
            return None
        if shape[0] not in self._axes:
            self._axes[shape[0]] = axis_by_others(shape[0], self._shapes(os.path.splitext(path)[1]))
        return self._axes[shape[0]]

    def _shapes(self, extension):
        """The shapes of the tables in the files of a kind, without those that cannot be read."""
        for file in self.names().values():
            path = os.path.join(self.path, file)
            if file.endswith(extension) and not made_in(os.path.dirname(path)):
                with contextlib.suppress(UserError):
                    yield array_shape(path) or read_array(path).shape

    def remark(self, name: str) -> Optional[str]:
        """What a user should know of how the file of a video is read, in a line; None where there is nothing."""
        path = self._path(name)
        if path.endswith(".csv") and index_column(path):
            return ("the first column of %s has no name: in each such file it is taken for an index and left out, if "
                    "it counts 0, 1, 2, ..." % path)
        if not self.temporal_scale and self.columns() != self.feat_dim:
            return ("the %d columns of %s and of the others like it are filled up with zeros to --feat_dim %d"
                    % (self.columns(), path, self.feat_dim))
        return None

    def _path(self, name):
        stored = stored_name(name, self.names(), self.path)
        if stored is None:
            raise UserError("video %s has no features in %s: put %s.csv there" % (name, self.path, name))
        return os.path.join(self.path, self.names()[stored])


def _best(files):
    """{video: file}, the file of the preferred kind where a video has several."""
    files = sorted((os.path.splitext(file) for file in files), key=lambda file: EXTENSIONS.index(file[1]), reverse=True)
    return {os.path.basename(stem): stem + extension for stem, extension in files}
