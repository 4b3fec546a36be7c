"""Rescale raw snippet features of any length to T positions: from <input>/<video>.csv to <output>/csv_mean_<T>/.

    python3 tools/prepare_features.py --input raw --output data/my_features --video_anno anno.json

A raw file has a row for each snippet of --snippet_frames frames, in order. There are two ways (--method):
    snippet   as the published csv_mean_100 were made. Each snippet is placed at its centre in seconds. For each of the
              T bins, three samples are interpolated linearly and averaged. A bin that no snippet reaches is zero.
    linear    T positions at equal distances from the first snippet to the last. This needs no annotations.
C becomes a multiple of 4, because the network needs that: columns of zeros are added where it is none. Without the
number of frames of a video, and without --feature_fps, its features cover all of it. With --write_anno FILE, the
annotations are written to FILE with the feature_frame of these features.

Features that tools/extract_features.py made need no annotations: videos.csv beside them has their times. Their T
positions cover the whole video.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bmn.errors import UserError, command_line, run_as_program
from bmn.extracted import VIDEOS, made_in
from bmn.options import POSITIVE, Parser


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", required=True, help="folder of raw feature files, or an HDF5 file")
    parser.add_argument("--output", required=True, help="data folder, the --data_path of main.py")
    parser.add_argument("--video_anno", nargs="+", help="annotation files with the lengths of the videos, in any form "
                        "that docs/data.md describes")
    parser.add_argument("--method", choices=("snippet", "linear"), default="snippet",
                        help="the rule of csv_mean_100, or rows at equal distances (default: %(default)s)")
    parser.add_argument("--temporal_scale", type=int, default=100, help="T (default: %(default)s)")
    parser.add_argument("--snippet_frames", type=int, default=16, help="frames of a snippet (default: %(default)s)")
    parser.add_argument("--feature_fps", type=POSITIVE, help="rate (frames a second) at which the frames of the "
                        "snippets were taken (default: that of the video)")
    parser.add_argument("--coverage", type=POSITIVE, nargs=2, default=(0.9, 1.1), metavar=("LOW", "HIGH"),
                        help="part of a video that its features may cover (default: 0.9 1.1)")
    parser.add_argument("--feat_dim", type=int, default=0, help="C (default: the columns of the first video)")
    parser.add_argument("--write_anno", help="write the annotations with the right feature_frame to this file")
    args = parser.parse_args()
    if not args.video_anno and (args.write_anno or (args.method == "snippet" and not made_in(args.input))):
        raise UserError("--method snippet and --write_anno need --video_anno: give the durations of the videos")
    if args.feature_fps and made_in(args.input):
        raise UserError("--feature_fps %g, but %s in %s has the rate of each video: leave it out"
                        % (args.feature_fps, VIDEOS, args.input))
    if args.temporal_scale < 2 or args.snippet_frames < 1:
        raise UserError("--temporal_scale %d and --snippet_frames %d are too small: give at least 2 and at least 1"
                        % (args.temporal_scale, args.snippet_frames))
    return args


if __name__ == "__main__":      # before the imports that take seconds
    ARGUMENTS = command_line(parse_arguments, "scipy")

from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np

from bmn import extracted, parallel
from bmn.data.annotation_files import ROWS, AnnotationFile, frame_count, read_annotation_files
from bmn.data.annotations import read_entry
from bmn.data.feature_files import as_rows, few, filled_columns, filled_up, own_columns, write_csv
from bmn.data.features import HDF5_EXTENSIONS, say_how_files_are_read
from bmn.data.folder_features import EXTENSIONS, FolderFeatures
from bmn.data.hdf5_features import Hdf5Features
from bmn.data.rescaling import rescale_extracted, rescale_linearly, rescale_snippets
from bmn.files import check_writable, inside, write_json
from bmn.progress import progress
from bmn.values import counted, number, video_id


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


def read_raw(source: Any, name: str, feat_dim: int, origin: str) -> np.ndarray:
    """[snippets, C] of a video; ``feat_dim``, ``origin`` and UserError are as in :func:`as_rows`."""
    return as_rows(*source.table(name), feat_dim, "raw features of %s in %s" % (name, source.path), origin)


class Length(NamedTuple):
    """How long a video is: seconds, and frames at the rate of its snippets, None where nobody says."""
    seconds: float
    frames: Optional[float]


def read_lengths(files: List[AnnotationFile], names: List[str], feature_fps: Optional[float]) -> Dict[str, Length]:
    """{name: Length} of the videos ``names``.

    Names with and without v_ are the same.

    Raises:
        UserError: a video is not annotated, or its length is no number above 0.
    """
    found = {video_id(name): (file, entry) for file in files for name, entry in file.videos.items()}
    source = "--video_anno %s" % " ".join(file.path for file in files)
    absent = [name for name in names if video_id(name) not in found]
    if absent:
        raise UserError("%s lacks %d of %s that have raw features (%s): annotate them, at least with duration_second, "
                        "or give --method linear" % (source, len(absent), counted(len(names), "video"), few(absent)))
    lengths = {}
    for name in names:
        file, entry = found[video_id(name)]
        frames = {key: entry.get(key) for key in ("duration_second", "duration", "duration_frame")}
        seconds = read_entry(name, frames, "--video_anno %s" % file.path).seconds
        counted_frames = frame_count(entry, "duration_frame")
        lengths[name] = Length(seconds, seconds * feature_fps if feature_fps else
                               None if counted_frames is None else number(counted_frames))
    return lengths


def check_coverage(name: str, snippets: int, length: Length, args: argparse.Namespace) -> None:
    """Compare the frames of the snippets with those of the video.

    Raises:
        UserError: the features cover less or more of the video than --coverage allows.
    """
    if length.frames is None:
        return
    taken = snippets * args.snippet_frames
    low, high = args.coverage
    if not low <= taken / length.frames <= high:
        raise UserError("raw features of %s: %s of %s are %s, but the video has %.6g%s, so they "
                        "would cover %.0f %% of it: give the right --snippet_frames or --feature_fps (the rate at "
                        "which their frames were taken), or, where they really cover that much, --coverage"
                        % (name, counted(snippets, "snippet"), counted(args.snippet_frames, "frame"),
                           counted(taken, "frame"), length.frames,
                           " at --feature_fps %g" % args.feature_fps if args.feature_fps else "",
                           100 * taken / length.frames))


def prepare(source: Any, files: List[AnnotationFile], args: argparse.Namespace) -> Dict[str, int]:
    """Write the rescaled features of every raw video, and return {name: number of snippets}.

    Args:
        source: what :func:`open_raw` returned.
        files: the annotation files; none with --method linear.
        args: the command line.

    Raises:
        UserError: there are no raw features, or some cannot be used or written.
    """
    names = sorted(source.names())
    if not names:
        raise UserError("--input %s holds no features: a folder must hold files <video>%s, and an HDF5 file a data set "
                        "for each video" % (source.path, ", ".join(EXTENSIONS)))
    say_how_files_are_read(source, names, print)
    made_here = extracted.lengths_of(source.path, names)
    lengths = read_lengths(files, names, args.feature_fps) if files and not made_here else {}
    annotated = {video_id(name): name for file in files for name in file.videos}
    first = source.table(names[0])[0].shape
    feat_dim, origin = own_columns(first, args.feat_dim or first[1]), "those of %s have C =" % names[0]
    if feat_dim == args.feat_dim:
        origin = "--feat_dim is"
    folder = os.path.join(args.output, "csv_mean_%d" % args.temporal_scale)
    if os.path.realpath(folder) == os.path.realpath(args.input):
        raise UserError("--output %s would put the rescaled features into %s, over the raw ones of --input: give "
                        "another folder" % (args.output, folder))

    def work(name):
        raw = read_raw(source, name, feat_dim, origin)
        if name in lengths:
            check_coverage(name, len(raw), lengths[name], args)
        if args.method == "linear":
            features = rescale_linearly(raw, args.temporal_scale)
        elif made_here:
            features = rescale_extracted(raw, made_here[name], args.temporal_scale)
        else:
            frames = lengths[name].frames or len(raw) * args.snippet_frames
            features = rescale_snippets(raw, frames, lengths[name].seconds, args.temporal_scale, args.snippet_frames)
        path = inside(folder, annotated.get(video_id(name), name), ".csv")
        write_csv(path, filled_columns(features, filled_up(feat_dim)))
        return name, len(raw)

    snippets, flaws = {}, []
    for outcome in progress(parallel.outcomes(work, names), "rescaling", len(names), "video"):
        if isinstance(outcome, UserError):
            flaws.append(str(outcome))
        else:
            snippets[outcome[0]] = outcome[1]
    if flaws:
        raise UserError("%s (%d of %s could not be rescaled)" % (flaws[0], len(flaws), counted(len(names), "video")))
    extracted.carry_description(extracted.find_description(source.path), folder)
    print("%s rescaled to T = %d, C = %d in %s"
          % (counted(len(names), "video"), args.temporal_scale, filled_up(feat_dim), folder))
    if filled_up(feat_dim) != feat_dim:
        print("C = %d was filled up with columns of zeros: give --feat_dim %d to main.py"
              % (feat_dim, filled_up(feat_dim)))
    known = set(map(video_id, snippets))
    without = [name for key, name in annotated.items() if key not in known]
    if without:
        print("%s without raw features: %s" % (counted(len(without), "annotated video"), few(without)))
    return snippets


def with_coverage(files: List[AnnotationFile], snippets: Dict[str, int], args: argparse.Namespace) -> Dict[str, dict]:
    """The annotations in the reference's form, with the feature_frame of these features where frames are counted."""
    count_of = {video_id(name): count for name, count in snippets.items()}
    made_here = {video_id(name): length for name, length in extracted.lengths_of(args.input, list(snippets)).items()}
    videos = {}
    for file in files:
        for name in file.videos:
            videos[name] = entry = dict(file.videos[name])
            its_length = made_here.get(video_id(name))
            if its_length:          # its features cover all of it, so no frames are counted
                for key in ("duration", "duration_frame", "feature_frame"):
                    entry.pop(key, None)
                entry["duration_second"] = its_length.seconds
            if file.form == ROWS:
                actions = read_entry(name, entry, "--video_anno %s" % file.path).actions
                entry["annotations"] = [{"segment": [start, end], "label": label} for start, end, label in actions]
            if its_length or video_id(name) not in count_of:
                continue
            seconds, frames = read_lengths([file], [name], args.feature_fps)[name]
            entry["duration_second"] = seconds
            if frames is not None:
                taken = count_of[video_id(name)] * args.snippet_frames
                counted_frames = number(frame_count(entry, "duration_frame")) or frames
                entry["duration_frame"] = counted_frames
                entry["feature_frame"] = taken / frames * counted_frames if args.feature_fps else taken
    return videos


def main(args: argparse.Namespace) -> None:
    if args.write_anno:
        check_writable(args.write_anno)
    files = read_annotation_files(args.video_anno) if args.video_anno else []
    snippets = prepare(open_raw(args.input), files, args)
    if args.write_anno:
        write_json(args.write_anno, with_coverage(files, snippets, args))


if __name__ == "__main__":
    run_as_program(main, ARGUMENTS)
