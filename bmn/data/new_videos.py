"""Videos that are in no data set yet, as tools/predict.py is given them: their features, and how long they are."""
import argparse
import csv
import os
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from bmn import extracted
from bmn.data.annotation_files import lengths_in_rows, read_annotation_files
from bmn.data.annotations import Video, read_actions, read_entry
from bmn.data.array_files import ARRAY_EXTENSIONS
from bmn.data.feature_files import as_rows, filled_columns, scale_of
from bmn.data.features import open_source
from bmn.data.folder_features import EXTENSIONS, FolderFeatures
from bmn.data.rescaling import rescale_extracted, rescale_snippets
from bmn.errors import UserError
from bmn.inputs import check_input, open_text
from bmn.values import by_id, number, video_id

SNIPPET = 16        # frames of a raw snippet
LONGEST = 1e9       # seconds


def are_videos(path: str) -> bool:
    """Whether FEATURES is a video, or a folder of videos that has no features of them."""
    if not os.path.isdir(path):
        return path.lower().endswith(extracted.VIDEO_ENDINGS)
    files = [os.path.splitext(file) for _, _, files in os.walk(path) for file in files]
    videos = {stem for stem, ending in files if ending.lower() in extracted.VIDEO_ENDINGS}
    return bool(videos) and not any(stem in videos or ending in ARRAY_EXTENSIONS for stem, ending in files
                                    if ending in EXTENSIONS)


def find_videos(path: str, opt: dict) -> Tuple[Any, List[str]]:
    """(source of features, names of its videos) for FEATURES.

    Raises:
        UserError: there is nothing, or nothing that can be used.
    """
    if path.endswith(EXTENSIONS) and not os.path.isdir(path):
        check_input(path, "FEATURES")
        folder, file = os.path.split(path)
        name = os.path.splitext(file)[0]
        return FolderFeatures(folder, scale_of(opt), opt["feat_dim"], {name: file}), [name]
    source = open_source(dict(opt, data_path=path))
    names = sorted(source.names())
    if not names:
        raise UserError("%s holds no features: a folder must hold files <video>%s, and an HDF5 file a data set for "
                        "each video" % (path, ", ".join(EXTENSIONS)))
    return source, names


def read_lengths(args: argparse.Namespace, names: List[str], files: Dict[str, extracted.Length]) -> Dict[str, Video]:
    """{name: Video}. With --duration there is only a length; ``files`` are the lengths of videos that were decoded.

    Raises:
        UserError: the length of a video is not known, or its annotations are invalid.
    """
    if files:
        known = {} if not args.video_anno else {
            video_id(name): entry for file in read_annotation_files(args.video_anno)
            for name, entry in file.videos.items()}
        return {name: Video(*[files[name].seconds] * 3, read_actions(
            name, known.get(video_id(name), {}), "--video_anno")[0]) for name in names}
    if not args.duration and not args.video_anno:
        raise UserError("how long the videos of %s are is not known: give --duration or --video_anno" % args.features)
    if args.video_anno:
        known = {name: entry for file in read_annotation_files(args.video_anno) for name, entry in file.videos.items()}
        source = "--video_anno " + " ".join(args.video_anno)
    elif os.path.exists(args.duration):
        source = "--duration " + args.duration
        known = _read_length_list(args.duration, source)
    elif number(args.duration) is None:
        raise UserError("--duration %s is neither a number of seconds nor a file: give one of them" % args.duration)
    else:
        known = {name: {"duration_second": args.duration} for name in names}
        source = "--duration"
    known, videos = {key: known[name] for key, name in by_id(known, source).items()}, {}
    for name in names:
        if video_id(name) not in known:
            raise UserError("%s does not have the length of video %s: add it" % (source, name))
        videos[name] = read_entry(name, known[video_id(name)], source)
        if videos[name].seconds >= LONGEST:
            raise UserError("%s: video %s has the length %g seconds, which no video has: correct it"
                            % (source, name, videos[name].seconds))
    return videos


def _read_length_list(path, source):
    try:
        with open_text(path, "--duration") as handle:
            rows = csv.DictReader(handle)
            if not {"video", "seconds"} <= set(rows.fieldnames or ()):
                raise UserError("%s has no columns video and seconds, separated by commas: give such a file, or a "
                                "number" % source)
            rows = [(row["video"], row["seconds"] or "") for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError("%s cannot be read as a CSV text file (%s): give another, or a number"
                        % (source, error)) from None
    return {name: {"duration_second": seconds} for name, seconds in lengths_in_rows(rows, source).items()}


def read_features(source: Any, name: str, video: Video, opt: dict, columns_of_all: int,
                  length: Optional[extracted.Length] = None) -> np.ndarray:
    """float32 [C, T] of a video, rescaled where its table is of another length, or where videos.csv has its ``length``;
    for windows [C, rows] as they are. ``columns_of_all`` is what own_columns returned of the first video.

    Raises:
        UserError: the features cannot be used.
    """
    if opt.get("window"):
        return source.read(name)
    table, rows_are_time = source.table(name)
    rows, columns = table.shape
    scale = opt["temporal_scale"]
    if not length and scale == (rows if rows_are_time or columns == opt["feat_dim"] else columns):
        return source.read(name)
    raw = as_rows(table, rows_are_time, columns_of_all, "features of %s in %s" % (name, source.path))
    rescaled = rescale_extracted(raw, length, scale) if length else rescale_snippets(
        raw, len(raw) * SNIPPET, video.seconds, scale, SNIPPET)
    return np.ascontiguousarray(filled_columns(rescaled, opt["feat_dim"]).T, np.float32)
