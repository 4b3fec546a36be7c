"""Feature sequences of videos: where they are, reading them, and finding what is wrong before training starts."""
import io
import os

import numpy as np
import pandas as pd

from defaults import with_defaults
from errors import UserError

EXTENSIONS = (".csv", ".npy", ".npz")       # the first that is there serves


def open_features(opt, names, runtime=None, log=print):
    """The features of the videos ``names``: an object with ``read(name)`` -> float32 [C, T] and ``name in object``.

    Raises:
        UserError: as :func:`check_features`.
    """
    opt = with_defaults(opt)
    source = open_source(opt)
    missing = check_features(opt, names, source)
    if missing:
        log("%d of %d videos have no features and are left out: %s" % (len(missing), len(names), _few(missing)))
    return source


def open_source(opt):
    """What ``opt["data_path"]`` holds, read without a cache."""
    opt = with_defaults(opt)
    return FeatureFolder(opt["data_path"], opt["temporal_scale"], opt["feat_dim"])


def check_features(opt, names, source=None):
    """The videos of ``names`` that have no features; empty unless ``opt["skip_missing"]``.

    Raises:
        UserError: features are missing and ``skip_missing`` is not set, or there are none at all.
    """
    opt = with_defaults(opt)
    source = open_source(opt) if source is None else source
    missing = [name for name in names if name not in source]
    if missing and (not opt["skip_missing"] or len(missing) == len(names)):
        raise UserError("%d of %d videos have no feature file in %s (the first: %s)"
                        % (len(missing), len(names), source.place, _few(missing)))
    return missing


class FeatureFolder:
    """A folder with a file for each video."""

    def __init__(self, data_path, temporal_scale, feat_dim):
        self.temporal_scale, self.feat_dim = temporal_scale, feat_dim
        inner = os.path.join(data_path, "csv_mean_%d" % temporal_scale)
        self.place = inner if os.path.isdir(inner) else data_path
        self._files = None

    def __contains__(self, name):
        return name in self._found()

    def read(self, name):
        """float32 [C, T]."""
        path = os.path.join(self.place, name + ".csv")
        table = read_csv(path)
        if table.shape != (self.temporal_scale, self.feat_dim):
            raise UserError("feature file %s has %d rows and %d columns, --temporal_scale %d and --feat_dim %d are asked"
                            % (path, table.shape[0], table.shape[1], self.temporal_scale, self.feat_dim))
        return np.ascontiguousarray(table.T, np.float32)

    def _found(self):
        if self._files is None:
            with os.scandir(self.place) as entries:
                self._files = {os.path.splitext(e.name)[0]: e.name for e in entries if e.name.endswith(EXTENSIONS)}
        return self._files


def read_csv(path):
    """The numbers of a CSV file below its header line: float64 [rows, columns]."""
    with open(path, "rb") as handle:
        header, _, text = handle.read().partition(b"\n")
    columns = header.count(b",") + 1
    values = pd.read_csv(io.BytesIO(text.replace(b",", b"\n")), header=None, dtype=np.float64, na_filter=False,
                         engine="c", low_memory=False).values
    return values.reshape(-1, columns)


def _few(names):
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
