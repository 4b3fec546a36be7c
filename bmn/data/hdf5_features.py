"""An HDF5 file with the features of many videos. No link in it leads to another file."""
import contextlib
import os
from typing import Dict, List, Tuple

import numpy as np

from bmn.data.array_files import numbers, table_shape
from bmn.data.feature_files import axis_by_others, few, fitted, own_columns
from bmn.data.packed_features import stored_name
from bmn.errors import UserError, first_line
from bmn.inputs import check_input, check_size


class Hdf5Features:
    """An HDF5 file that has for each video a data set, or a group that holds a single data set.

    Args:
        path: the file.
        temporal_scale, feat_dim: T and C that :meth:`read` insists on; T = 0: any number of rows.
    """

    def __init__(self, path: str, temporal_scale: int, feat_dim: int):
        self.path, self.temporal_scale, self.feat_dim = path, temporal_scale, feat_dim
        self._file = self._owner = self._names = self._columns = None
        self._axes = {}

    def __getstate__(self):
        return dict(self.__dict__, _file=None, _owner=None)

    def names(self) -> Dict[str, str]:
        """{video: its name in the file}; UserError where the file cannot be read, or h5py is not installed."""
        if self._names is None:
            try:
                self._names = {name: name for name in self._open()}
            except (RuntimeError, OSError, ValueError, KeyError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError("feature file %s is not a readable HDF5 file (%s): write it again"
                                % (self.path, first_line(error)[:160])) from None
        return self._names

    def __contains__(self, name: str) -> bool:
        return stored_name(name, self.names(), self.path) is not None

    def stamp(self, name: str) -> List[int]:
        """[size, time of change in ns] of the whole file; UserError where it cannot be read."""
        return stamp_of(self.path)

    def table(self, name: str) -> Tuple[np.ndarray, bool]:
        """The numbers of a video as in the file: (float [rows, columns], whether the rows are known to be time).

        Raises:
            UserError: the data set is missing or cannot be used.
        """
        where = "%s: %s" % (self.path, name)
        try:
            found = self._data_set(self._open(), stored_name(name, self.names(), self.path) or name, where)
            check_size(found.size * found.dtype.itemsize, where)
            table = numbers(found[()], where)
            axis = self._time_axis(len(table)) if len(table) == table.shape[1] else None
            return (table.T, True) if axis == 1 else (table, axis == 0)
        except UserError:
            raise
        except Exception as error:      # a type, a link that leads nowhere, damaged bytes: h5py raises any exception
            raise UserError("%s cannot be read (%s): write the file again" % (where, first_line(error)[:160])) from None

    def _time_axis(self, length):
        """The axis that is time in square tables of a length, where the other tables show it, else None."""
        if length not in self._axes:
            self._axes[length] = axis_by_others(length, self._shapes())
        return self._axes[length]

    def _shapes(self):
        """The shapes of the tables in the file, without those that cannot be read."""
        for name in self.names():
            with contextlib.suppress(Exception):        # table() says what is wrong with it
                yield table_shape(self._data_set(self._open(), name, name).shape)

    def _data_set(self, group, name, where):
        """The data set of a video: itself, or the only one in its group. No link leads to another file."""
        import h5py
        found = self._inside(group, name, where)
        if isinstance(found, h5py.Group):
            inner = list(found)
            single = self._inside(found, inner[0], where) if len(inner) == 1 else found
            if isinstance(single, h5py.Group):
                raise UserError("%s is a group of %d (%s), but it must hold a single data set of T x C numbers"
                                % (where, len(inner), few(inner)))
            found = single
        if not isinstance(found, h5py.Dataset):
            raise UserError("%s is a %s, but a data set of T x C numbers is needed" % (where, type(found).__name__))
        if found.is_virtual or found.external:
            raise UserError("%s has its numbers in another file: copy them into one file" % where)
        return found

    @staticmethod
    def _inside(group, name, where):
        import h5py
        if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
            raise UserError("%s is a link to another file: copy the numbers into one file" % where)
        return group[name]

    def read(self, name: str) -> np.ndarray:
        """float32 [C, T] of a video; UserError where its data set cannot be used."""
        return fitted(*self.table(name), self.temporal_scale, self.feat_dim, "%s: %s" % (self.path, name),
                      self.columns())

    def columns(self) -> int:
        """How many columns the tables have, as :func:`own_columns` says; UserError where the first cannot be used."""
        if self._columns is None:
            self._columns = own_columns(self.table(min(self.names()))[0].shape, self.feat_dim)
        return self._columns

    def rows(self, name: str) -> int:
        """Number of rows of a video, or T; UserError where its data set cannot be used."""
        return self.read(name).shape[1]

    def _open(self):
        if self._owner != os.getpid():      # an HDF5 handle does not survive a fork
            try:
                import h5py
            except ImportError as error:
                raise UserError("feature file %s is an HDF5 file: install h5py to read it (%s)"
                                % (self.path, error)) from None
            check_input(self.path, "feature file")
            try:
                self._file, self._owner = h5py.File(self.path, "r"), os.getpid()
            except Exception as error:
                locked = "lock" in str(error) or "already open" in str(error)
                raise UserError("feature file %s %s" % (self.path, (
                    "is open in another process, which may be writing it: wait until that has ended, or set "
                    "HDF5_USE_FILE_LOCKING=FALSE if nothing writes it (%s)" if locked else
                    "is not a readable HDF5 file (%s): write it again") % first_line(error)[:160])) from None
        return self._file


def stamp_of(path: str) -> List[int]:
    """[size, time of change in ns] of a feature file; UserError where it cannot be read."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError("feature file %s cannot be read (%s): check the path and its permissions"
                        % (path, error.strerror)) from None
    return [status.st_size, status.st_mtime_ns]
