"""Feature sequences of videos: where they are, how they are read, and the check that none is missing."""
import glob
import os
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from bmn.data.feature_cache import open_cache
from bmn.data.feature_files import EXTENSIONS, few, fitted, numbers, read_array, read_csv
from bmn.data.packed_features import PackedFeatures
from bmn.errors import UserError

HDF5_EXTENSIONS = (".h5", ".hdf5")
UNPACK = "zip -FF zip_csv_mean_100.zip --out csv_mean_100.zip && unzip csv_mean_100.zip"


def open_features(opt: dict, names: List[str], runtime: Any = None, log: Callable[[str], None] = print) -> Any:
    """The features of the videos ``names``, which must all be there unless ``opt["skip_missing"]`` is set.

    Unless ``opt["feature_cache"]`` is "off", the features are read from a packed file. At its first use, local rank 0
    of each machine reads all feature files, checks them and makes the packed file, while the other ranks wait.

    Args:
        opt: complete dict of options.
        names: the videos that will be read.
        runtime: what ``device.setup`` returned; None means a single process.
        log: called with one line at a time.

    Returns:
        an object with ``read(name)`` -> float32 [C, T] and ``name in object``; it can be pickled.

    Raises:
        UserError: features are missing or cannot be used, or no packed file can be written. If one rank raises it,
            all ranks raise it.
    """
    features, missing, problem = None, (), None
    try:
        source = open_source(opt)
        missing = check_features(opt, names, source)
        if missing:
            log("--skip_missing: %d of %d videos have no features and are left out (%s)"
                % (len(missing), len(names), few(missing)))
        if runtime is None or runtime.local_rank == 0:
            features = _cached(opt, source, names, missing, log)
    except UserError as error:
        problem = str(error)
    if runtime is not None and runtime.world_size > 1:
        problem = _agreed(runtime, problem, missing)
    if problem:
        raise UserError(problem)
    return _cached(opt, source, names, missing, log) if features is None else features


def _cached(opt, source, names, missing, log):
    if opt["feature_cache"] == "off" or isinstance(source, PackedFeatures):
        return source
    missing = set(missing)
    return open_cache(opt, source, [name for name in names if name not in missing], log)


def _agreed(runtime, problem, missing):
    """The problem of any rank, or None. All ranks learn of it, so that none waits for a rank that has stopped."""
    problems, left_out = zip(*runtime.gather((problem, tuple(missing))))
    if any(problems):
        return next(filter(None, problems))
    if len(set(left_out)) > 1:
        return ("--skip_missing: the machines lack different feature files (%s videos): copy the same files to each"
                % " and ".join(str(len(names)) for names in sorted(set(left_out), key=len)))
    return None


def check_features(opt: dict, names: List[str], source: Any) -> List[str]:
    """The videos of ``names`` that have no features in ``source``.

    Raises:
        UserError: features are missing although ``opt["skip_missing"]`` is not set, or all of them are missing.
    """
    missing = [name for name in names if name not in source]
    if missing and (not opt["skip_missing"] or len(missing) == len(names)):
        raise UserError("%d of %d videos have no features in %s (%s)%s: put them there (to unpack ActivityNet's "
                        "published archive: %s)%s"
                        % (len(missing), len(names), source.path, few(missing), _another_scale(opt), UNPACK,
                           ", or go on without them with --skip_missing" if len(missing) < len(names) else ""))
    return missing


def _another_scale(opt):
    """A hint for the user where the folder holds features of another T; else ""."""
    wanted = "csv_mean_%d" % opt["temporal_scale"]
    there = filter(os.path.isdir, glob.glob(os.path.join(glob.escape(opt["data_path"]), "csv_mean_*")))
    there = sorted(map(os.path.basename, there))
    return "" if wanted in there or not there else "; there is %s, but --temporal_scale %d looks for %s" % (
        " and ".join(there), opt["temporal_scale"], wanted)


def open_source(opt: dict) -> Any:
    """The features in ``opt["data_path"]``, without a cache: a folder, an HDF5 file or a packed file.

    Args:
        opt: dict; data_path, temporal_scale and feat_dim are read.

    Raises:
        UserError: ``data_path`` does not exist, or is a file of another kind.
    """
    path, scale, dim = opt["data_path"], opt["temporal_scale"], opt["feat_dim"]
    if os.path.isfile(path):
        if path.endswith(HDF5_EXTENSIONS):
            return Hdf5Features(path, scale, dim)
        return PackedFeatures(path, scale, dim)
    if not os.path.isdir(path):
        raise UserError("--data_path %s does not exist: give the folder that holds csv_mean_%d, or an HDF5 or packed "
                        "feature file" % (path, scale))
    inner = os.path.join(path, "csv_mean_%d" % scale)
    return FolderFeatures(inner if os.path.isdir(inner) else path, scale, dim)


class FolderFeatures:
    """A folder with one file for each video: <video>.csv, .npy or .npz.

    Args:
        path: the folder.
        temporal_scale, feat_dim: T and C that :meth:`read` insists on.
        files: {video: file name}; None means all files in the folder.
    """

    def __init__(self, path: str, temporal_scale: int, feat_dim: int, files: Optional[Dict[str, str]] = None):
        self.path, self.temporal_scale, self.feat_dim = path, temporal_scale, feat_dim
        self._files = files

    def names(self) -> Dict[str, str]:
        """{video: file name}. The folder is listed at the first call.

        Raises:
            UserError: the folder cannot be read.
        """
        if self._files is None:
            try:
                with os.scandir(self.path) as entries:
                    files = [os.path.splitext(entry.name) for entry in entries if entry.name.endswith(EXTENSIONS)
                             and not entry.name.startswith(".") and not entry.is_dir()]     # macOS makes ._v_a.csv
            except OSError as error:
                raise UserError("feature folder %s cannot be read (%s): check the path and its permissions"
                                % (self.path, error.strerror)) from None
            files.sort(key=lambda file: EXTENSIONS.index(file[1]), reverse=True)    # the preferred one comes last
            self._files = {name: name + extension for name, extension in files}
        return self._files

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def stamp(self, name: str) -> List[int]:
        """[size, time of change in ns] of the file of a video; UserError where it cannot be read."""
        return _stamp(self._path(name))

    def table(self, name: str) -> Tuple[np.ndarray, bool]:
        """The numbers of a video as in its file: (float [rows, columns], whether the rows are known to be time).

        Raises:
            UserError: the file is missing or cannot be used.
        """
        path = self._path(name)
        return (read_csv(path), True) if path.endswith(".csv") else (read_array(path), False)

    def read(self, name: str) -> np.ndarray:
        """float32 [C, T] of a video; UserError where its file cannot be used."""
        return fitted(*self.table(name), self.temporal_scale, self.feat_dim, "feature file " + self._path(name))

    def _path(self, name):
        if name not in self.names():
            raise UserError("video %s has no features in %s: put %s.csv there" % (name, self.path, name))
        return os.path.join(self.path, self.names()[name])


class Hdf5Features:
    """An HDF5 file that has for each video a data set, or a group that holds a single data set.

    Args:
        path: the file.
        temporal_scale, feat_dim: T and C that :meth:`read` insists on.
    """

    def __init__(self, path: str, temporal_scale: int, feat_dim: int):
        self.path, self.temporal_scale, self.feat_dim = path, temporal_scale, feat_dim
        self._file = self._owner = self._names = None

    def __getstate__(self):
        return dict(self.__dict__, _file=None, _owner=None)

    def names(self) -> Dict[str, str]:
        """{video: its name in the file}; UserError where the file cannot be read, or h5py is not installed."""
        if self._names is None:
            self._names = {name: name for name in self._open()}
        return self._names

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def stamp(self, name: str) -> List[int]:
        """[size, time of change in ns] of the whole file; UserError where it cannot be read."""
        return _stamp(self.path)

    def table(self, name: str) -> Tuple[np.ndarray, bool]:
        """The numbers of a video as in the file: (float [rows, columns], False: either axis may be time).

        Raises:
            UserError: the data set is missing or cannot be used.
        """
        where = "%s: %s" % (self.path, name)
        try:
            found = self._open()[name]
            if hasattr(found, "keys"):
                inner = list(found.values())
                if len(inner) != 1 or hasattr(inner[0], "keys"):
                    raise UserError("%s is a group of %d (%s), but it must hold a single data set of T x C numbers"
                                    % (where, len(inner), few(list(found))))
                found = inner[0]
            return numbers(found[()], where), False
        except (KeyError, OSError, AttributeError, TypeError) as error:     # a type or a link, and not a data set
            raise UserError("%s cannot be read (%s): write the file again" % (where, error)) from None

    def read(self, name: str) -> np.ndarray:
        """float32 [C, T] of a video; UserError where its data set cannot be used."""
        return fitted(*self.table(name), self.temporal_scale, self.feat_dim, "%s: %s" % (self.path, name))

    def _open(self):
        if self._owner != os.getpid():      # an HDF5 handle does not survive a fork
            try:
                import h5py
            except ImportError:
                raise UserError("feature file %s is an HDF5 file: install h5py to read it" % self.path) from None
            try:
                self._file, self._owner = h5py.File(self.path, "r"), os.getpid()
            except OSError as error:
                raise UserError("feature file %s is not a readable HDF5 file (%s): write it again"
                                % (self.path, error)) from None
        return self._file


def _stamp(path):
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError("feature file %s cannot be read (%s): check the path and its permissions"
                        % (path, error.strerror)) from None
    return [status.st_size, status.st_mtime_ns]
