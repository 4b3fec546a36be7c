"""Show what is understood of the annotations, and read every feature file, before a long training depends on them.

    python3 tools/check_data.py --data_path data/activitynet_feature_cuhk
    python3 tools/check_data.py --video_anno thumos14.json --training_subset Validation --validation_subset Test

The tool accepts main.py's options. It prints the form of the annotation files, videos, lengths, actions and classes of
each subset, and what proposals reach that look at no video: a network is worth what it adds to that. It counts what is
odd, and says what it does to the labels. It lists every problem that would stop a run, and then exits with status 1.
--plot FILE draws how lengths are distributed. Nothing else is written.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bmn.errors import UserError, command_line, run_as_program
from bmn.options import DEFAULTS, Option
from opts import parse_opt

PLOT = Option("plot", "", str, "draw the distributions of lengths into this file")

if __name__ == "__main__":      # before the imports that take seconds
    ARGUMENTS = command_line(lambda: parse_opt(description=__doc__.split("\n")[0], more=[PLOT]))

import signal
from collections import Counter
from typing import Dict, List, Tuple

import numpy as np

import eval as evaluation
from bmn import extracted, parallel
from bmn.data.annotations import Annotations, Video
from bmn.data.feature_files import few
from bmn.data.features import open_source, remedy_for
from bmn.data.ground_truth import ground_truth_of
from bmn.data.odd_annotations import odd_annotations
from bmn.data.windows import cut, in_window, margin_of, with_stride
from bmn.files import check_writable
from bmn.progress import progress
from bmn.results import figures
from bmn.results.protocols import PROTOCOLS
from bmn.values import counted, seconds_text

NEEDED = ("train", "validation")        # subsets of a full run
MOST = 30                               # problems that are listed


def check_annotations(opt: dict) -> Dict[str, Dict[str, Video]]:
    """Print what the annotation files hold, and return {subset: {name: Video}} of those of NEEDED that are there.

    Raises:
        UserError: as in annotations.Annotations and its method subset, or neither subset is there.
    """
    annotations = Annotations(opt)
    for file in annotations.files:
        print("%s: %s, %s" % (file.path, file.form, counted(len(file.videos), "video")))
    counts = Counter(subset or "none" for subset in annotations.subsets().values())
    print("%s: %s (%s)" % (opt["video_info"] if annotations.listed is not None else "subsets of the entries",
                           counted(sum(counts.values()), "video"),
                           ", ".join("%s %d" % row for row in sorted(counts.items()))))
    if annotations.blocked:
        print("%s: leaves out %s" % (opt["blocked"], counted(len(annotations.blocked), "video")))
    there = [subset for subset in NEEDED if annotations.has(subset)]
    subsets = {subset: annotations.subset(subset) for subset in there or NEEDED}
    for subset, videos in subsets.items():
        print("%s: %s" % (subset, describe(videos)))
    for subset in sorted(set(NEEDED) - set(there)):
        print("%s: %s" % (subset, annotations.no_such_subset(subset)))
    for line in odd_annotations(annotations, list(subsets.values())):
        print("  odd: " + str(line))
    return subsets


def describe(videos: Dict[str, Video]) -> str:
    """A line about the videos of a subset: their lengths and actions."""
    lengths = [video.seconds for video in videos.values()]
    actions = [(end - start, video.seconds, label) for video in videos.values() for start, end, label in video.actions]
    text = "%s of %s" % (counted(len(videos), "video"), spread(lengths))
    if not actions:
        return text + ", no actions"
    fractions = [100 * length / seconds for length, seconds, _ in actions]
    return "%s, %s of %s (%s), of %s, half of them shorter than %.3g %% of their video" % (
        text, counted(len(actions), "action"), counted(len({label for _, _, label in actions}), "class"),
        "%.1f a video" % (len(actions) / float(len(videos))), spread([length for length, _, _ in actions]),
        np.median(fractions))


def spread(seconds: List[float]) -> str:
    """Shortest, median and longest of some lengths."""
    return "%s to %s s (median %s s)" % (seconds_text(min(seconds)), seconds_text(max(seconds), 4),
                                         seconds_text(np.median(seconds)))


def print_baselines(opt: dict, subsets: Dict[str, Dict[str, Video]]) -> None:
    """Print what proposals reach on the validation videos that look at no video."""
    if "validation" not in subsets:
        return
    protocol = PROTOCOLS[opt["protocol"]]
    actions = protocol.split(ground_truth_of(opt, lambda line: None).actions)[0]
    if not actions:
        print("the validation videos have no actions: there is nothing to evaluate")
        return
    print("proposals that look at no video, in percent (what a network adds to these is its own):")
    found = evaluation.baselines(actions, subsets.get("train", {}), subsets["validation"], protocol)
    for what, curve in found.items():
        print("  %-*s %s  AUC %.2f" % (max(32, *map(len, found)), what, "  ".join(
            "AR@%d %.2f" % (count, 100 * evaluation.average_recall_at(curve[2], count)) for count in protocol.numbers),
            evaluation.area_under_curve(curve[0], curve[1])))


def check_windows(opt: dict, subsets: Dict[str, Dict[str, Video]], rows: Dict[str, int]) -> None:
    """Print how --window cuts the videos, and which actions it cuts off.

    Raises:
        UserError: --feature_stride cannot be right.
    """
    size, step, longest = opt["window"], opt["window_subsample"], opt["max_duration"] or opt["window"]
    ambiguous = PROTOCOLS[opt["protocol"]].ambiguous
    lengths = extracted.lengths_of(opt["data_path"], list(rows))
    margin = margin_of(opt)
    for subset, videos in subsets.items():
        scaled, cut_windows, used = with_stride(videos, rows, opt, margin, lengths), 0, 0
        odd, seconds = {"a proposal (%d positions)" % longest: [], "a window (%d)" % size: [], "none": []}, []
        for name, video in scaled.items():
            windows = cut(name, rows[name], opt, margin)
            position = video.feature_seconds / rows[name] * step
            seconds.append(position)
            actions = [action for action in video.actions if action[2] != (ambiguous or None)]
            within = [bool(in_window(window, video._replace(actions=[action]), size, opt["window_inside"])[0].actions)
                      for action in actions for window in windows]
            within = np.array(within, bool).reshape(len(actions), len(windows))
            cut_windows, used = cut_windows + len(windows), used + int(within.any(axis=0).sum())
            for (start, end, _), found in zip(actions, within.any(axis=1)):
                length = (end - start) / position
                for kind, holds in zip(odd, (length > longest, length > size, not found)):
                    odd[kind] += [name] * bool(holds)
        print("%s: %s of %d positions, each of %.3g to %.3g s; in %d of them lies an action"
              % (subset, counted(cut_windows, "window"), size, min(seconds), max(seconds), used))
        for kind, names in odd.items():
            if names:
                what = ("in no window by --window_inside %g: no labels" % opt["window_inside"]
                        if kind == "none" else "longer than %s: no proposal matches them whole" % kind)
                print("  odd: %s %s (%s)" % (counted(len(names), "action"), what, few(list(dict.fromkeys(names)))))


def check_rate(opt: dict, names: List[str]) -> None:
    """Look whether the features are at their own rate.

    Raises:
        UserError: they are, so that they must be rescaled or cut into windows.
    """
    source, rows = open_source(dict(opt, window=opt["temporal_scale"])), []
    for name in names:
        if name in source:
            try:
                rows.append(source.rows(name))
            except UserError:       # it is listed already
                return
    if len(set(rows)) > 1 and rows.count(opt["temporal_scale"]) < len(rows) / 2.0:
        raise UserError("the features of %s have from %d to %d rows of --feat_dim %d numbers, so they are at their own "
                        "rate: rescale them to --temporal_scale %d with tools/prepare_features.py, or give --window"
                        % (counted(len(rows), "video"), min(rows), max(rows), opt["feat_dim"], opt["temporal_scale"]))


def check_features(opt: dict, names: List[str]) -> Tuple[List[str], Dict[str, int]]:
    """Read the features of ``names``, and print every problem with them.

    Returns:
        the problems that stop a run, and {name: number of rows} of the features that can be used.

    Raises:
        UserError: as in features.open_source.
    """
    source = open_source(opt)
    missing = [name for name in names if name not in source]
    there = [name for name in names if name in source]
    print("%s: features of %d of %s" % (source.path, len(there), counted(len(names), "video")))

    def work(name):
        return name, source.read(name).shape[1]

    outcomes = list(progress(parallel.outcomes(work, there), "reading features", len(there), "video"))
    problems = sorted(str(outcome) for outcome in outcomes if isinstance(outcome, UserError))
    rows = dict(outcome for outcome in outcomes if not isinstance(outcome, UserError))
    lines = problems + ["video %s has no features in %s" % (name, source.path) for name in missing]
    for line in lines[:MOST]:
        print("  " + line)
    if len(lines) > MOST:
        print("  ... and %d more" % (len(lines) - MOST))
    if missing:
        print("  " + remedy_for(opt, missing, source))
    return problems if opt["skip_missing"] and there else lines, rows


def main(arguments: argparse.Namespace) -> None:
    opt = vars(arguments)
    if opt["plot"]:
        check_writable(opt["plot"])
        figures.picture_format(opt["plot"])
    subsets = check_annotations(opt)
    print_baselines(opt, subsets)
    if opt["plot"]:
        figures.save(figures.lengths(subsets), opt["plot"])
        print("lengths: %s" % opt["plot"])
    names = list({name: None for videos in subsets.values() for name in videos})
    if opt["data_path"] == DEFAULTS["data_path"] and not os.path.exists(opt["data_path"]):
        print("no features were read, because there is no %s: --data_path names them" % opt["data_path"])
        return
    problems, rows = check_features(opt, names)
    if problems and not opt["window"]:
        check_rate(opt, names)
    if problems:
        raise UserError("%d of %s cannot be used: repair or fetch their feature files, or leave videos without a file "
                        "out with --skip_missing" % (len(problems), counted(len(names), "video")))
    if opt["window"]:
        check_windows(opt, {subset: {name: video for name, video in videos.items() if name in rows}
                            for subset, videos in subsets.items()}, rows)
    print("all %d videos of %s can be used: T = %d, C = %d"
          % (len(names), " and ".join(subsets), opt["temporal_scale"], opt["feat_dim"]) if len(rows) == len(names) else
          "%d of %s can be used (--skip_missing): T = %d, C = %d"
          % (len(rows), counted(len(names), "video"), opt["temporal_scale"], opt["feat_dim"]))


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)       # so that `| head` on a long list ends without an error
    run_as_program(main, ARGUMENTS)
