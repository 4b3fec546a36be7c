"""Make a small data set in exactly the layout of ActivityNet-1.3 or THUMOS-14, from a seed.

    python3 tools/make_sample_data.py --output data --videos 160
    python3 tools/make_sample_data.py --output data --kind thumos14 --videos 40 --feat_dim 100

The tool writes <output>/activitynet_annotations/{video_info_new.csv, anet_anno_action.json, action_name.csv} and
<output>/activitynet_feature_cuhk/csv_mean_<T>/<video>.csv. With --kind thumos14, the videos are long, and their actions
short: it writes <output>/thumos14_annotations/thumos14.json and <output>/thumos14_features/<video>.npy, with a row
every --stride frames. The features are noise with actions in it: the pattern of
the class from start to end, and short cues at both boundaries. Distractors have the pattern of a class, but no cues and
no annotation. So an untrained network scores near chance, and a trained one far above. With --annotations, the videos
and segments come from real annotation files (the folder of ActivityNet's, or THUMOS-14's JSON file), and only the
features are invented.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bmn.errors import UserError, command_line, run_as_program
from bmn.options import Parser


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="data", help="folder to write to (default: %(default)s)")
    parser.add_argument("--videos", type=int, default=160, help="number of videos (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random (default: %(default)s)")
    parser.add_argument("--kind", choices=("activitynet", "thumos14"), default="activitynet",
                        help="features rescaled to T positions, or at their own rate (default: %(default)s)")
    parser.add_argument("--temporal_scale", type=int, default=100, help="T (default: %(default)s)")
    parser.add_argument("--stride", type=int, default=5, help="of thumos14: frames from a row to the next (default: 5)")
    parser.add_argument("--feat_dim", type=int, default=400, help="C (default: %(default)s)")
    parser.add_argument("--noise", type=float, default=1.0,
                        help="standard deviation of the noise (default: %(default)s)")
    parser.add_argument("--annotations", help="folder or file of real annotations to take the videos from")
    args = parser.parse_args()
    if args.videos < 5:
        raise UserError("--videos %d leaves a subset empty: give at least 5" % args.videos)
    if args.temporal_scale < 2 or args.feat_dim < 1 or args.stride < 1:
        raise UserError("--temporal_scale, --feat_dim and --stride are numbers of positions, of features and of "
                        "frames: give at least 2, 1 and 1")
    return args


if __name__ == "__main__":      # before the imports that take seconds
    ARGUMENTS = command_line(parse_arguments)

import csv
import json
import zlib
from typing import Dict, Sequence, Tuple

import numpy as np

from bmn.data.annotation_files import read_annotation_file, read_video_list
from bmn.data.feature_files import write_csv
from bmn.files import inside, replacing, write_json
from bmn.values import counted

CLASSES = ("Beekeeping", "Bouldering", "Fixing a bicycle", "Fencing", "Juggling clubs", "Making pasta", "Pole vault",
           "Sheep shearing", "Tightrope walking", "Whitewater kayaking")
SUBSETS = (("training", 0.6), ("validation", 0.3), ("testing", 0.1))
SIGNAL = 4.0            # length of a pattern, relative to the noise along it
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def make_videos(count: int, seed: int) -> Dict[str, Tuple[str, float, dict]]:
    """{name: (subset, fps, annotation entry)} of ``count`` invented videos."""
    random = np.random.RandomState(seed)
    videos = {}
    up_to = np.cumsum([fraction for _, fraction in SUBSETS])
    for i in range(count):
        name = "v_" + "".join(ALPHABET[k] for k in random.randint(0, 64, 11))
        subset = SUBSETS[int(np.searchsorted(up_to, (i + 0.5) / count))][0]
        fps = float(random.choice([24.0, 25.0, 29.97, 30.0]))
        frames = int(np.clip(random.lognormal(4.4, 0.6), 12, 240) * fps)
        entry = {"duration_second": round(frames / fps, 2), "duration_frame": frames,
                 "feature_frame": frames // 16 * 16, "annotations": []}
        if subset != "testing":             # test videos are not annotated in the published files either
            entry["annotations"] = [
                {"segment": [round(edge * entry["duration_second"], 2) for edge in segment],
                 "label": CLASSES[random.randint(len(CLASSES))]} for segment in _segments(random)]
        videos[name] = subset, fps, entry
    return videos


def _segments(random):
    """One to five segments in fractions of the video. Their lengths differ much, and some overlap the one before."""
    segments, position = [], 0.0
    for _ in range(random.choice([1, 1, 1, 2, 2, 3, 4, 5])):
        length = float(np.exp(random.uniform(np.log(0.06), np.log(0.75))))
        gap = -0.3 * length if segments and random.rand() < 0.15 else random.uniform(0.03, 0.25)
        start = max(position + gap, 0.0)
        if start + length > 1:              # the last one is cut, or dropped if it is then too short
            length = 1 - start
        if length < 0.05:
            break
        segments.append((start, start + length))
        position = start + length
    return segments or [(0.2, 0.7)]


def make_long_videos(count: int, seed: int) -> Dict[str, dict]:
    """{name: entry as in THUMOS-14's file} of ``count`` invented videos: minutes long, with actions of seconds."""
    random = np.random.RandomState(seed)
    videos = {}
    for i in range(count):
        subset, fps = ("Validation", "Test")[i % 2], float(random.choice([25.0, 29.97, 30.0]))
        seconds = float(np.clip(random.lognormal(4.6, 0.7), 15, 900))
        label, actions, at = CLASSES[random.randint(len(CLASSES))], [], random.uniform(0, 20)
        while at < seconds - 1:
            length = float(np.clip(random.lognormal(1.2, 0.7), 0.3, 30))
            actions.append({"segment": [round(at, 1), round(min(at + length, seconds), 1)], "label": label})
            at += length + random.exponential(12) + 0.5
        videos["video_%s_%07d" % (subset.lower(), i + 1)] = {
            "subset": subset, "duration": round(seconds, 2), "frame": int(seconds * fps), "fps": fps,
            "annotations": actions or [{"segment": [0.2, round(seconds / 2, 1)], "label": label}]}
    return videos


def plant_features(name: str, entry: dict, temporal_scale: int, feat_dim: int, seed: int,
                   noise: float = 1.0, spans: float = 1.0, classes: Sequence[str] = CLASSES) -> np.ndarray:
    """T x C float32 features of one video: its actions, distractors and noise.

    They depend only on the arguments. The pattern of a class comes from its label, and the rest from the video's name.
    A long video has ``spans`` times the distractors of a short one, and they are as much shorter.
    """
    random = _random(seed, "video", name)
    seconds = entry["duration"] if "duration" in entry else (
        float(entry["feature_frame"]) / entry["duration_frame"] * entry["duration_second"])
    at = (np.arange(temporal_scale) + 0.5) / temporal_scale
    width = 1.0 / temporal_scale
    features = random.randn(temporal_scale, feat_dim) * noise + _pattern(seed, "background", feat_dim)
    features += 0.5 * random.randn(feat_dim)                        # a constant offset of this video
    for annotation in entry["annotations"]:
        start, end = (edge / seconds for edge in annotation["segment"])
        inside = _soft_step(at - start, width) * _soft_step(end - at, width)
        features += np.outer(inside, _pattern(seed, annotation["label"], feat_dim) + _pattern(seed, "action", feat_dim))
        for edge, cue in ((start, "start"), (end, "end")):
            features += np.outer(np.exp(-0.5 * ((at - edge) / (1.2 * width)) ** 2), 1.5 * _pattern(seed, cue, feat_dim))
    for _ in range(int(random.randint(0, 3) * spans)):
        centre, half = random.rand(), random.uniform(0.02, 0.15) / spans
        label = classes[random.randint(len(classes))]
        features += np.outer(np.abs(at - centre) < half, _pattern(seed, label, feat_dim))
    return features.astype(np.float32)


def _soft_step(x, width):
    return 1 / (1 + np.exp(-np.clip(x / (0.5 * width), -30, 30)))


def _pattern(seed, key, feat_dim):
    """A random direction in feature space, of a length of about SIGNAL for any ``feat_dim``."""
    return _random(seed, "pattern", key).randn(feat_dim) * (SIGNAL / feat_dim ** 0.5)


def _random(seed, kind, key):
    return np.random.RandomState(zlib.crc32(("%d/%s/%s" % (seed, kind, key)).encode()))


def take_videos(folder: str, count: int, seed: int) -> Dict[str, Tuple[str, float, dict]]:
    """Like :func:`make_videos`, with ``count`` random videos of the real annotation files in ``folder``.

    Raises:
        UserError: a file is missing or unreadable, or lists fewer videos.
    """
    listed = [row[:2] for row in read_video_list(os.path.join(folder, "video_info_new.csv"))]
    annotated = read_annotation_file(os.path.join(folder, "anet_anno_action.json")).videos
    listed = [(name, subset) for name, subset in listed if subset in [known for known, _ in SUBSETS]]
    if count > len(listed):
        raise UserError("--videos %d is more than the %s of %s: give a smaller number"
                        % (count, counted(len(listed), "video"), folder))
    chosen = np.sort(np.random.RandomState(seed).permutation(len(listed))[:count])
    return {listed[i][0]: (listed[i][1], 25.0, annotated[listed[i][0]]) for i in chosen}


def write_annotations(folder: str, videos: Dict[str, Tuple[str, float, dict]]) -> None:
    """Write the three annotation files, in the form in which they are published.

    Raises:
        UserError: a file cannot be written.
    """
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, "anet_anno_action.json"), {name: entry for name, (_, _, entry) in videos.items()})
    with replacing(os.path.join(folder, "video_info_new.csv")) as path, open(path, "w", newline="") as handle:
        rows = csv.writer(handle, lineterminator="\n")
        rows.writerow(["video", "numFrame", "seconds", "fps", "rfps", "subset", "featureFrame"])
        for name, (subset, fps, entry) in videos.items():
            frames, seconds = entry["duration_frame"], entry["duration_second"]
            rows.writerow([name, frames, seconds, fps, frames / seconds, subset, entry["feature_frame"]])
    labels = sorted({a["label"] for _, _, entry in videos.values() for a in entry["annotations"]})
    with replacing(os.path.join(folder, "action_name.csv")) as path, open(path, "w") as handle:
        handle.write("\n".join(["action"] + labels) + "\n")


def write_long(args: argparse.Namespace) -> None:
    """Write a data set of --kind thumos14.

    Raises:
        UserError: the annotations cannot be used, or a file cannot be written.
    """
    videos = make_long_videos(args.videos, args.seed)
    if args.annotations:
        videos = read_annotation_file(args.annotations).videos
        if args.videos > len(videos):
            raise UserError("--videos %d is more than the %d videos of %s: give a smaller number"
                            % (args.videos, len(videos), args.annotations))
        chosen = np.sort(np.random.RandomState(args.seed).permutation(len(videos))[:args.videos])
        videos = {list(videos)[i]: list(videos.values())[i] for i in chosen}
    classes = sorted({one["label"] for entry in videos.values() for one in entry["annotations"]})
    write_json(os.path.join(args.output, "thumos14_annotations", "thumos14.json"),
               {"version": "sample", "database": videos})
    folder, rows = os.path.join(args.output, "thumos14_features"), 0
    for name, entry in videos.items():
        count = -(-int(entry["frame"]) // args.stride)
        features = plant_features(name, entry, count, args.feat_dim, args.seed, args.noise, max(1.0, count / 100.0),
                                  classes)
        rows += count
        with replacing(inside(folder, name, ".npy"), durable=False) as path, open(path, "wb") as handle:
            np.save(handle, features)
    counts = [entry["subset"] for entry in videos.values()]
    print("%d videos in %s: %s, %d rows of features" % (len(videos), args.output, json.dumps(
        {subset: counts.count(subset) for subset in sorted(set(counts))}), rows))


def main(args: argparse.Namespace) -> None:
    if args.kind == "thumos14":
        return write_long(args)
    videos = (take_videos(args.annotations, args.videos, args.seed) if args.annotations
              else make_videos(args.videos, args.seed))
    write_annotations(os.path.join(args.output, "activitynet_annotations"), videos)
    folder = os.path.join(args.output, "activitynet_feature_cuhk", "csv_mean_%d" % args.temporal_scale)
    for name, (_, _, entry) in videos.items():
        features = plant_features(name, entry, args.temporal_scale, args.feat_dim, args.seed, args.noise)
        write_csv(os.path.join(folder, name + ".csv"), features, digits=6)
    counts = [subset for subset, _, _ in videos.values()]
    print("%s in %s: %s" % (counted(len(videos), "video"), args.output, json.dumps(
        {subset: counts.count(subset) for subset, _ in SUBSETS})))


if __name__ == "__main__":
    run_as_program(main, ARGUMENTS)
