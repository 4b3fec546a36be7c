"""Real data that anybody can get: recordings of a phone at the waist, as a data set of proposals.

    python3 docs/datasets/hapt.py --raw RawData --output hapt --temporal_scale 64

--raw is the folder RawData of the data set HAPT, Smartphone-Based Recognition of Human Activities and Postural
Transitions (UCI 341): 61 recordings of 30 people at 50 Hz. Windows of a minute are the videos. Walking, climbing stairs
and the six transitions between postures are the actions; sitting, standing and lying are the background. The tool
writes the layout of the reference: <output>/activitynet_annotations/ and <output>/activitynet_feature_cuhk/.
docs/datasets/hapt.md has the commands and the figures.
"""
import argparse
import glob
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
import numpy as np

from bmn.data.feature_files import write_csv
from bmn.errors import UserError, run_as_program
from bmn.files import replacing, write_json

RATE = 50                   # samples a second
FRAMES = 16                 # the reference counts frames, in snippets of 16; here a second is a snippet
LENGTH = 60                 # seconds of a window
EVERY = {"training": 20, "validation": 30}
VALIDATION = {2, 4, 9, 10, 12, 13, 18, 20, 24}          # the people of the data set's own test part
ACTIONS = {1: "walking", 2: "walking upstairs", 3: "walking downstairs", 7: "stand to sit", 8: "sit to stand",
           9: "sit to lie", 10: "lie to sit", 11: "stand to lie", 12: "lie to stand"}
BANDS = ((0.4, 2.7), (3.1, 9.8))        # Hz
TINY = 1e-4


def features_of(samples: np.ndarray, bins: int) -> np.ndarray:
    """[bins, 40] of the six channels [samples, 6] (acceleration in g, angular velocity in rad/s) of a window."""
    rows = []
    edges = np.linspace(0, len(samples), bins + 1).round().astype(int)
    gravity = np.array([samples[a:b, :3].mean(0) for a, b in zip(edges[:-1], edges[1:])])
    gravity /= np.linalg.norm(gravity, axis=1, keepdims=True)
    turn = np.diff(gravity, axis=0, prepend=gravity[:1])
    # The spectrum needs more samples than a bin has: two seconds around its centre.
    for number, (a, b) in enumerate(zip(edges[:-1], edges[1:])):
        part, middle = samples[a:b], (a + b) // 2
        around = samples[max(0, middle - RATE):middle + RATE, :3]
        magnitude = np.linalg.norm(around, axis=1)
        power = np.abs(np.fft.rfft((magnitude - magnitude.mean()) * np.hanning(len(magnitude)))) ** 2 / len(magnitude)
        hertz = np.fft.rfftfreq(len(magnitude), 1.0 / RATE)
        share = power[1:] / max(power[1:].sum(), TINY)
        norms = np.linalg.norm(part[:, :3], axis=1), np.linalg.norm(part[:, 3:], axis=1)
        rows.append(np.concatenate([
            part.mean(0), np.log(part.std(0) + TINY), part.min(0), part.max(0),
            np.log(np.abs(np.diff(part, axis=0)).mean(0) + TINY),
            [norms[0].mean(), norms[0].std(), norms[1].mean(), norms[1].std()],
            [np.log(power[(hertz >= low) & (hertz <= high)].sum() + TINY) for low, high in BANDS],
            [-(share * np.log(share + 1e-12)).sum()], turn[number]]))
    return np.array(rows)


def read_recordings(folder: str) -> dict:
    """{(experiment, user): (samples [n, 6], [(first, last, label)] in samples)}.

    Raises:
        UserError: the folder is not RawData of HAPT.
    """
    labels = os.path.join(folder, "labels.txt")
    if not os.path.isfile(labels):
        raise UserError("--raw %s has no labels.txt: give the folder RawData of the data set HAPT" % folder)
    segments = {}
    for experiment, user, activity, first, last in np.loadtxt(labels, dtype=int):
        segments.setdefault((experiment, user), []).append((first, last, activity))
    recordings = {}
    for path in sorted(glob.glob(os.path.join(folder, "acc_exp*_user*.txt"))):
        key = tuple(map(int, re.search(r"exp(\d+)_user(\d+)", path).groups()))
        both = [np.loadtxt(one) for one in (path, path.replace("acc_", "gyro_"))]
        count = min(map(len, both))
        recordings[key] = np.concatenate([one[:count] for one in both], axis=1), segments[key]
    return recordings


def windows_of(count: int, every: int) -> list:
    """(first, last) sample of the windows of a recording of ``count`` samples, the last at its end."""
    length = LENGTH * RATE
    begins = list(range(0, max(count - length, 0) + 1, every * RATE))
    return [(begin, min(begin + length, count)) for begin in begins]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--raw", required=True, help="folder RawData of HAPT")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--temporal_scale", type=int, default=64, help="T (default: %(default)s)")
    args = parser.parse_args()
    videos, tables = {}, {}
    for (experiment, user), (samples, segments) in read_recordings(args.raw).items():
        subset = "validation" if user in VALIDATION else "training"
        for begin, end in windows_of(len(samples), EVERY[subset]):
            name = "v_exp%02d_user%02d_%04d" % (experiment, user, begin // RATE)
            actions = [{"segment": [(max(first, begin) - begin) / RATE, (min(last, end) - begin) / RATE],
                        "label": ACTIONS[activity]} for first, last, activity in segments
                       if activity in ACTIONS and min(last, end) - max(first, begin) > RATE // 2]
            if actions:
                frames = (end - begin) * FRAMES // RATE
                videos[name] = {"duration_second": (end - begin) / RATE, "duration_frame": frames,
                                "feature_frame": frames, "subset": subset, "annotations": actions}
                tables[name] = features_of(samples[begin:end], args.temporal_scale)
    rows = np.concatenate([tables[name] for name in tables if videos[name]["subset"] == "training"])
    mean, deviation = rows.mean(0), rows.std(0) + TINY
    for name, table in tables.items():
        write_csv(os.path.join(args.output, "activitynet_feature_cuhk", "csv_mean_%d" % args.temporal_scale,
                               name + ".csv"), (table - mean) / deviation, digits=6)
    folder = os.path.join(args.output, "activitynet_annotations")
    write_json(os.path.join(folder, "anet_anno_action.json"), videos)
    with replacing(os.path.join(folder, "video_info_new.csv")) as path, open(path, "w") as handle:
        handle.write("video,subset\n")
        handle.writelines("%s,%s\n" % (name, video["subset"]) for name, video in videos.items())
    counts = [video["subset"] for video in videos.values()]
    print("%d training and %d validation windows, %.1f actions each" % (
        counts.count("training"), counts.count("validation"),
        sum(len(video["annotations"]) for video in videos.values()) / len(videos)))


if __name__ == "__main__":
    run_as_program(main)
