"""Rescale raw snippet features of any length to T positions: from <input>/<video>.csv to <output>/csv_mean_<T>/.

    python3 tools/prepare_features.py --input raw --output data/my_features --video_anno anno.json

A raw file has a row for each snippet of --snippet_frames frames, in order. There are two ways (--method):
    snippet   as the published csv_mean_100 were made. Each snippet is placed at its centre in seconds. For each of the
              T bins, three samples are interpolated linearly and averaged. A bin that no snippet reaches is zero.
    linear    T positions at equal distances from the first snippet to the last. This needs no annotations.
With --write_anno FILE, the annotations are written to FILE with the feature_frame of these features.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bmn.errors import UserError, command_line, run_as_program


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", required=True, help="folder of raw feature files, or an HDF5 file")
    parser.add_argument("--output", required=True, help="data folder, the --data_path of main.py")
    parser.add_argument("--video_anno", help="annotation file with duration_second and duration_frame of the videos")
    parser.add_argument("--method", choices=("snippet", "linear"), default="snippet")
    parser.add_argument("--temporal_scale", type=int, default=100, help="T (default: %(default)s)")
    parser.add_argument("--snippet_frames", type=int, default=16, help="frames of a snippet (default: %(default)s)")
    parser.add_argument("--feat_dim", type=int, default=0, help="C (default: the columns of the first video)")
    parser.add_argument("--write_anno", help="write the annotations with the right feature_frame to this file")
    args = parser.parse_args()
    if not args.video_anno and (args.method == "snippet" or args.write_anno):
        raise UserError("--method snippet and --write_anno need --video_anno: give the durations of the videos")
    if args.temporal_scale < 2 or args.snippet_frames < 1:
        raise UserError("--temporal_scale %d and --snippet_frames %d are too small: give at least 2 and at least 1"
                        % (args.temporal_scale, args.snippet_frames))
    return args


if __name__ == "__main__":      # before the imports that take seconds
    ARGUMENTS = command_line(parse_arguments, "scipy")

from typing import Any, Dict, List

import numpy as np
from scipy.interpolate import interp1d

from bmn import parallel
from bmn.data.annotations import read_annotations
from bmn.data.feature_files import few, write_csv
from bmn.data.features import HDF5_EXTENSIONS, FolderFeatures, Hdf5Features
from bmn.files import check_writable, inside, write_json
from bmn.progress import count, progress

SAMPLES = 3             # samples of a bin
MARGIN = 0.0001         # seconds: samples stay this far inside the outermost snippet centres


def rescale_snippets(raw: np.ndarray, duration_frame: float, duration_second: float, temporal_scale: int,
                     snippet_frames: int = 16) -> np.ndarray:
    """T rows from raw snippets, exactly by the rule of the published csv_mean_100.

    Args:
        raw: [snippets, C], one every ``snippet_frames`` frames.
        duration_frame, duration_second: length of the video in frames and in seconds.
        temporal_scale: T.
        snippet_frames: frames of a snippet.

    Returns:
        float64 [T, C].
    """
    raw = np.asarray(raw, np.float64)
    if len(raw) == 1:
        return np.repeat(raw, temporal_scale, axis=0)
    # Some comparisons in ``reached`` are of equal numbers, so the rounding by the order of these operations matters.
    covered = float(len(raw) * snippet_frames) / duration_frame * duration_second
    step = snippet_frames / (float(duration_frame) / duration_second)
    centre = step / 2 + np.arange(len(raw)) * step
    bins = np.arange(temporal_scale)
    first = np.maximum(centre[0] + MARGIN, 1.0 / temporal_scale * bins * covered)
    last = np.minimum(centre[-1] - MARGIN, 1.0 / temporal_scale * (bins + 1) * covered)
    reached = (last >= centre[0]) & (first <= centre[-1])
    samples = first[:, None] + ((last - first) / (SAMPLES - 1))[:, None] * np.arange(SAMPLES)
    samples = np.clip(samples[reached], centre[0], centre[-1])                          # [reached, 3]
    rescaled = np.zeros((temporal_scale, raw.shape[1]))
    rescaled[reached] = interp1d(centre, raw, axis=0)(samples).mean(axis=1)
    return rescaled


def rescale_linearly(raw: np.ndarray, temporal_scale: int) -> np.ndarray:
    """T rows at equal distances from the first row of ``raw`` [snippets, C] to its last: float64 [T, C]."""
    raw = np.asarray(raw, np.float64)
    if len(raw) == 1:
        return np.repeat(raw, temporal_scale, axis=0)
    return interp1d(np.arange(len(raw)), raw, axis=0)(np.linspace(0, len(raw) - 1, temporal_scale))


def open_raw(path: str) -> Any:
    """Raw features: a folder with one file for each video, or an HDF5 file.

    Raises:
        UserError: ``path`` is neither of them.
    """
    if not os.path.exists(path):
        raise UserError("--input %s does not exist: give the folder or the HDF5 file of the raw features" % path)
    if os.path.isdir(path):
        return FolderFeatures(path, 0, 0)
    if path.endswith(HDF5_EXTENSIONS):
        return Hdf5Features(path, 0, 0)
    raise UserError("--input %s is neither a folder nor an HDF5 file (%s): give one of them"
                    % (path, " or ".join(HDF5_EXTENSIONS)))


def as_snippets(table: np.ndarray, rows_are_time: bool, feat_dim: int, where: str,
                origin: str = "--feat_dim is") -> np.ndarray:
    """[snippets, C] from a table.

    Args:
        table: [rows, columns].
        rows_are_time: whether the rows are known to be time; otherwise the axis of length ``feat_dim`` is C.
        feat_dim: C; 0 means the number of columns.
        where: names the features in error messages.
        origin: says in error messages where C comes from.

    Raises:
        UserError: no axis has the length C, it is unknown which axis is time, or a number is not finite.
    """
    rows, columns = table.shape
    if feat_dim and feat_dim not in (table.shape[1:] if rows_are_time else table.shape):
        raise UserError("%s have %d rows and %d columns, but %s %d: give the right --feat_dim, or extract "
                        "all videos in the same way" % (where, rows, columns, origin, feat_dim))
    if rows == columns == feat_dim and not rows_are_time:
        raise UserError("%s have as many snippets as features (%d), so it is unknown which axis is time: store them "
                        "as CSV, with a row for each snippet" % (where, rows))
    if feat_dim and columns != feat_dim:
        table = table.T
    if not len(table) or not np.isfinite(table).all():
        raise UserError("%s are empty or hold a number that is not finite: extract this video again" % where)
    return table


def read_raw(source: Any, name: str, feat_dim: int, origin: str) -> np.ndarray:
    """[snippets, C] of a video; ``feat_dim``, ``origin`` and UserError are as in :func:`as_snippets`."""
    return as_snippets(*source.table(name), feat_dim, "raw features of %s in %s" % (name, source.path), origin)


def read_durations(path: str, names: List[str]) -> Dict[str, dict]:
    """{name: annotation entry} of all annotated videos. The videos ``names`` must be among them, with valid durations.

    Raises:
        UserError: the file cannot be used, a video is not annotated, or a duration is not a number above 0.
    """
    videos = read_annotations(path)
    absent = [name for name in names if name not in videos]
    if absent:
        raise UserError("--video_anno %s lacks %d of %d videos that have raw features (%s): annotate them, at least "
                        "with duration_second and duration_frame, or give --method linear"
                        % (path, len(absent), len(names), few(absent)))
    for name in names:
        for key in ("duration_second", "duration_frame"):
            value = videos[name].get(key)
            if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise UserError("--video_anno %s: video %s has %s = %r, but a number above 0 is needed"
                                % (path, name, key, value))
    return videos


def prepare(source: Any, args: argparse.Namespace) -> Dict[str, int]:
    """Write the rescaled features of every raw video, and return {name: number of snippets}.

    Raises:
        UserError: there are no raw features, or some cannot be used or written.
    """
    names = sorted(source.names())
    if not names:
        raise UserError("--input %s holds no features: a folder must hold files <video>.csv, .npy or .npz, and an HDF5 "
                        "file a data set for each video" % source.path)
    videos = read_durations(args.video_anno, names) if args.video_anno else {}
    feat_dim, origin = args.feat_dim, "--feat_dim is"
    if not feat_dim:
        feat_dim, origin = read_raw(source, names[0], 0, "").shape[1], "those of %s have C =" % names[0]
    folder = os.path.join(args.output, "csv_mean_%d" % args.temporal_scale)

    def work(name):
        raw = read_raw(source, name, feat_dim, origin)
        if args.method == "linear":
            features = rescale_linearly(raw, args.temporal_scale)
        else:
            features = rescale_snippets(raw, videos[name]["duration_frame"], videos[name]["duration_second"],
                                        args.temporal_scale, args.snippet_frames)
        write_csv(inside(folder, name, ".csv"), features)
        return name, len(raw)

    snippets, flaws = {}, []
    for outcome in progress(parallel.outcomes(work, names), "rescaling", len(names), "video"):
        if isinstance(outcome, UserError):
            flaws.append(str(outcome))
        else:
            snippets[outcome[0]] = outcome[1]
    if flaws:
        raise UserError("%s (%d of %d videos could not be rescaled)" % (flaws[0], len(flaws), len(names)))
    print("%s rescaled to T = %d, C = %d in %s" % (count(len(names), "video"), args.temporal_scale, feat_dim, folder))
    without = [name for name in videos if name not in snippets]
    if without:
        print("%d annotated videos have no raw features (%s)" % (len(without), few(without)))
    return snippets


def main(args: argparse.Namespace) -> None:
    if args.write_anno:
        check_writable(args.write_anno)
    snippets = prepare(open_raw(args.input), args)
    if args.write_anno:
        videos = read_annotations(args.video_anno)
        for name, count in snippets.items():
            videos[name]["feature_frame"] = count * args.snippet_frames
        write_json(args.write_anno, videos)


if __name__ == "__main__":
    run_as_program(main, ARGUMENTS)
