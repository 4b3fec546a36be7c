"""Seconds to load a video: ours and the reference's VideoDataSet, on the same files.

    OMP_NUM_THREADS=1 python3 benchmarks/data.py --reference DIR

DIR is a clone of github.com/JJBOY/BMN-Boundary-Matching-Network at a92c1d7. Feature files of the published kind are
made up for real training videos, in a temporary folder. Times are processor time of one core, with files in the page
cache. Packing, on one processor and on two, is compared with one pass of reading in wall-clock time: leave the machine
alone meanwhile.
"""
import argparse
import contextlib
import io
import os
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import numpy as np
import torch
from reference import check_clone, load_reference

from bmn.data.feature_files import read_csv
from bmn.data.features import open_features
from bmn.errors import run_as_program
from bmn.options import with_defaults
from dataset import VideoDataSet


def make_data(folder, reference, count):
    """Options for ``count`` real training videos with random features, written as the published ones are."""
    annotations = os.path.join(reference, "data", "activitynet_annotations")
    with open(os.path.join(annotations, "video_info_new.csv")) as handle:
        lines = handle.read().splitlines()
    lines = lines[:1] + [line for line in lines if ",training," in line][::9649 // count][:count]
    with open(os.path.join(folder, "info.csv"), "w") as handle:
        handle.write("\n".join(lines) + "\n")
    os.mkdir(os.path.join(folder, "csv_mean_100"))
    random = np.random.RandomState(0)
    for line in lines[1:]:
        with open(os.path.join(folder, "csv_mean_100", line.split(",")[0] + ".csv"), "w") as handle:
            handle.write(",".join("f%d" % channel for channel in range(400)) + "\n")
            handle.writelines(",".join(["%.12g"] * 400) % tuple(row) + "\n" for row in random.randn(100, 400).tolist())
    given = {"mode": "train", "video_info": os.path.join(folder, "info.csv"), "feature_path": folder + os.sep,
             "video_anno": os.path.join(annotations, "anet_anno_action.json")}
    return dict(with_defaults(given), **given)


def per_item(work, count, repeats=1, clock=time.process_time):
    """Least seconds of ``work(index)`` over all indices, per index."""
    seconds = []
    for _ in range(repeats):
        began = clock()
        for index in range(count):
            work(index)
        seconds.append((clock() - began) / count)
    return min(seconds)


def packing(opt, names, processors):
    """Wall-clock seconds a video for packing all of them on ``processors``; None where there are fewer."""
    before = os.sched_getaffinity(0)
    if len(before) < processors:
        return None
    os.sched_setaffinity(0, sorted(before)[:processors])
    try:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            open_features(dict(opt, feature_cache=folder), names, log=lambda line: None)
            return (time.perf_counter() - began) / len(names)
    finally:
        os.sched_setaffinity(0, before)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", required=True, help="clone of the reference")
    parser.add_argument("--videos", type=int, default=200)
    args = parser.parse_args()
    check_clone(args.reference)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        opt = make_data(folder, args.reference, args.videos)
        reference, = load_reference(args.reference, "dataset")
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = reference.VideoDataSet(opt, subset="train")
        packed = VideoDataSet(opt, "train", open_features(opt, theirs.video_list, log=lambda line: None))
        files = VideoDataSet(opt, "train")
        for index in range(0, len(packed), 7):      # items must be equal; the files are in the page cache
            for ours, wanted in zip(packed[index], theirs[index]):
                torch.testing.assert_close(ours, wanted, rtol=0, atol=0)
        count = len(packed)
        rows = [
            ("item, packed features", per_item(theirs.__getitem__, count), per_item(packed.__getitem__, count, 5)),
            ("item, text features", per_item(theirs.__getitem__, count), per_item(files.__getitem__, count)),
            ("labels alone",
             per_item(lambda i: theirs._get_train_label(i, theirs.anchor_xmin, theirs.anchor_xmax), count),
             per_item(lambda i: packed.labels(packed.videos[packed.video_list[i]]), count, 5)),
        ]
        path = os.path.join(folder, "csv_mean_100", "%s.csv")
        rows.append(("reading text", per_item(theirs._load_file, count),
                     per_item(lambda i: read_csv(path % packed.video_list[i]), count)))
        reading = per_item(theirs._load_file, count, clock=time.perf_counter)
        for processors in (1, 2):
            ours = packing(opt, packed.video_list, processors)
            if ours is not None:
                rows.append(("packing, %d processor%s" % (processors, "s" * (processors > 1)), reading, ours))
    print("%d videos, PyTorch %s, NumPy %s" % (count, torch.__version__, np.__version__))
    print("%-26s %14s %14s %8s" % ("milliseconds a video", "reference", "ours", "ratio"))
    for name, theirs, ours in rows:
        print("%-26s %14.3f %14.3f %7.1fx" % (name, theirs * 1e3, ours * 1e3, theirs / ours))


if __name__ == "__main__":
    run_as_program(main)
