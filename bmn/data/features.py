"""Feature sequences of videos: where they are, how they are read, and the check that none is missing."""
import glob
import os
import re
from typing import Any, Callable, List

from bmn.data.feature_cache import open_cache
from bmn.data.feature_files import few, scale_of
from bmn.data.folder_features import EXTENSIONS, FolderFeatures
from bmn.data.hdf5_features import Hdf5Features
from bmn.data.packed_features import PackedFeatures, stored_name
from bmn.errors import UserError
from bmn.inputs import check_input
from bmn.values import counted, video_id

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
            log("--skip_missing: no features for %d of %s, left out (%s)"
                % (len(missing), counted(len(names), "video"), few(missing)))
        if runtime is None or runtime.local_rank == 0:
            say_how_files_are_read(source, names, log)
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
    # Under the names of their files, so that annotations with and without v_ share one packed file.
    stored = [stored_name(name, source.names(), source.path) for name in names if name not in missing]
    return open_cache(opt, source, stored, log)


def say_how_files_are_read(source: Any, names: List[str], log: Callable[[str], None]) -> None:
    """Log once, from the first of ``names`` that ``source`` has, what the reader does with such files."""
    first = next((name for name in names if name in source), None)
    line = source.remark(first) if first is not None and hasattr(source, "remark") else None
    if line:
        log(line)


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
        raise UserError("no features for %d of %s in %s (%s): %s%s"
                        % (len(missing), counted(len(names), "video"), source.path, few(missing),
                           remedy_for(opt, missing, source),
                           ", or go on without them with --skip_missing" if len(missing) < len(names) else ""))
    return missing


def remedy_for(opt: dict, missing: List[str], source: Any) -> str:
    """What is in the place of missing features, and what to do; the end of a sentence.

    Args:
        opt: dict; data_path and temporal_scale are read.
        missing: names of videos without features.
        source: what :func:`open_source` returned.
    """
    if source.names():
        there = "it has those of %s (%s)" % (counted(len(source.names()), "video"), few(sorted(source.names())))
        what = "names must be those of --video_info, with or without v_"
    else:
        there, what = _holds(source.path), "a folder must hold a file for each video, %s" % ", ".join(EXTENSIONS)
    there += _almost(missing, source)
    another = _another_scale(opt)
    if another:
        return "%s; %s: give the --temporal_scale of the features" % (there, another)
    if opt["temporal_scale"] == 100 and re.match(r"^v_[\w-]{11}$", missing[0]):
        what += "; to unpack ActivityNet's published archive: " + UNPACK
    return "%s: %s" % (there, what)


def _almost(missing, source):
    """The first that is there under a name that only looks right: in another case, or a folder in place of a file."""
    wanted = {spelled.lower(): name for name in missing for spelled in (video_id(name), "v_" + video_id(name))}
    entries = list(source.names())
    if os.path.isdir(source.path):
        entries += [entry for entry in os.listdir(source.path) if entry.lower().endswith(EXTENSIONS)]
    for entry in sorted(entries):
        stem, extension = os.path.splitext(entry)
        name = wanted.get((stem if extension.lower() in EXTENSIONS else entry).lower())
        if name is not None and os.path.isdir(os.path.join(source.path, entry)):
            return ", and for %s it has %s, which is a folder and not a file" % (name, entry)
        if name is not None:
            return ", and for %s it has %s, whose name differs in upper and lower case" % (name, entry)
    return ""


def _holds(path):
    """What is in a folder without features: kinds and numbers of files, sub-folders."""
    if not os.path.isdir(path):
        return "it is empty"
    kinds, folders = {}, []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir():
                folders.append(entry.name)
            else:
                kinds.setdefault(os.path.splitext(entry.name)[1] or "without an ending", []).append(entry.name)
    found = ["%s %s (%s)" % (counted(len(names), "file"), kind, few(sorted(names)))
             for kind, names in sorted(kinds.items())]
    if folders:
        found.append("the folders %s" % few(sorted(folders)))
    return "it holds " + ", ".join(found) if found else "it is empty"


def _another_scale(opt):
    """A hint for the user where the folder holds features of another T; else ""."""
    if opt["window"]:
        return ""
    wanted = "csv_mean_%d" % opt["temporal_scale"]
    there = filter(os.path.isdir, glob.glob(os.path.join(glob.escape(opt["data_path"]), "csv_mean_*")))
    there = sorted(map(os.path.basename, there))
    return "" if wanted in there or not there else "there is %s, but --temporal_scale %d looks for %s" % (
        " and ".join(there), opt["temporal_scale"], wanted)


def open_source(opt: dict) -> Any:
    """The features in ``opt["data_path"]``, without a cache: a folder, an HDF5 file or a packed file.

    Args:
        opt: dict; data_path, temporal_scale, window and feat_dim are read. With a window, T is 0: any number of rows.

    Raises:
        UserError: ``data_path`` does not exist, or is a file of another kind.
    """
    path, scale, dim = opt["data_path"], scale_of(opt), opt["feat_dim"]
    if os.path.exists(path) and not os.path.isdir(path):
        check_input(path, "--data_path")
        if path.endswith(HDF5_EXTENSIONS):
            return Hdf5Features(path, scale, dim)
        return PackedFeatures(path, scale, dim)
    if not os.path.isdir(path):
        raise UserError("--data_path %s does not exist: give the folder that holds %s, or an HDF5 or packed feature "
                        "file" % (path, "csv_mean_%d" % scale if scale else "the features"))
    inner = os.path.join(path, "csv_mean_%d" % scale)       # which no folder is called where T is 0
    return FolderFeatures(inner if os.path.isdir(inner) else path, scale, dim)
