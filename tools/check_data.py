"""Check the annotations and read every feature file, before a long training depends on them.

    python3 tools/check_data.py --data_path data/activitynet_feature_cuhk

The tool accepts main.py's options. It lists every problem that would stop a run, and then exits with status 1. Things
that are merely odd are counted. Nothing is written.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bmn.errors import UserError, command_line, run_as_program
from opts import parse_opt

if __name__ == "__main__":      # before the imports that take seconds
    ARGUMENTS = command_line(lambda: parse_opt(description=__doc__.split("\n")[0]))

import signal
from collections import Counter
from typing import Dict, List, Tuple

from bmn import parallel
from bmn.data import segments
from bmn.data.annotations import read_video_list, read_videos
from bmn.data.feature_files import few
from bmn.data.features import UNPACK, open_source
from bmn.progress import progress

NEEDED = ("train", "validation")        # subsets of a full run


def check_annotations(opt: dict) -> Dict[str, dict]:
    """Print what the two annotation files hold, and return {name: annotation entry} of the needed videos.

    Raises:
        UserError: as in annotations.read_videos.
    """
    listed = read_video_list(opt["video_info"])
    counts = Counter(subset for _, subset in listed)
    print("%s: %d videos (%s)" % (opt["video_info"], len(listed),
                                  ", ".join("%s %d" % row for row in sorted(counts.items()))))
    repeated = [name for name, count in Counter(name for name, _ in listed).items() if count > 1]
    if repeated:
        print("  odd: %d videos are listed more than once (%s)" % (len(repeated), few(repeated)))
    videos = {}
    for subset in NEEDED:
        videos.update(read_videos(opt, subset))
    actions = [(name, video, one) for name, video in videos.items() for one in video["annotations"]]
    print("%s: %d actions of %d classes in the %d videos of train and validation"
          % (opt["video_anno"], len(actions), len({one.get("label") for _, _, one in actions}), len(videos)))
    for what, names in odd_annotations(videos, actions):
        if names:
            print("  odd: %d %s (%s)" % (len(names), what, few(names)))
    return videos


def odd_annotations(videos: Dict[str, dict], actions: List[Tuple[str, dict, dict]]) -> List[Tuple[str, List[str]]]:
    """[(what is odd, names of the videos)]. Nothing of this stops a run, but it may be a mistake.

    Args:
        videos: {name: annotation entry}.
        actions: (name, annotation entry, annotation) of each annotated action.
    """
    def named(holds):
        return [name for name, video, one in actions if holds(video, *one["segment"])]

    def covered(video):
        return float(video["feature_frame"]) / video["duration_frame"]

    return [
        ("videos have no action", [name for name, video in videos.items() if not video["annotations"]]),
        ("actions have no length", named(lambda video, start, end: start == end)),
        ("actions end before they start", named(lambda video, start, end: start > end)),
        ("actions begin after the end of their features, or end before 0",
         named(lambda video, start, end: start >= segments.annotated_seconds(video) or end < 0)),
        ("actions end more than a second after their video",
         named(lambda video, start, end: end > video["duration_second"] + 1)),
        ("actions have no label", [name for name, _, one in actions if not one.get("label")]),
        ("videos have features for less than 90 % or more than 110 % of their frames",
         [name for name, video in videos.items() if not 0.9 <= covered(video) <= 1.1]),
    ]


def check_features(opt: dict, names: List[str]) -> List[str]:
    """Read the features of ``names``, and print and return every problem with them.

    Raises:
        UserError: as in features.open_source.
    """
    source = open_source(opt)
    missing = [name for name in names if name not in source]
    there = [name for name in names if name in source]
    print("%s: features of %d of %d videos" % (source.path, len(there), len(names)))

    def work(name):
        source.read(name)

    outcomes = progress(parallel.outcomes(work, there), "reading features", len(there), "video")
    problems = sorted(str(outcome) for outcome in outcomes if isinstance(outcome, UserError))
    problems += ["video %s has no features in %s" % (name, source.path) for name in missing]
    for problem in problems:
        print("  " + problem)
    if missing:
        print("  to unpack ActivityNet's published archive: " + UNPACK)
    return problems


def main(arguments: argparse.Namespace) -> None:
    opt = vars(arguments)
    videos = check_annotations(opt)
    problems = check_features(opt, list(videos))
    if problems:
        raise UserError("%d of %d videos cannot be used: repair or fetch their feature files, or leave videos without "
                        "a file out with --skip_missing" % (len(problems), len(videos)))
    print("all %d videos of train and validation can be used: T = %d, C = %d"
          % (len(videos), opt["temporal_scale"], opt["feat_dim"]))


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)       # so that `| head` on a long list ends without an error
    run_as_program(main, ARGUMENTS)
