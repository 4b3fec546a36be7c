"""Compare what the reference and ours learn: both are trained and evaluated on the same videos, with several seeds.

    python3 benchmarks/accuracy.py --reference DIR --annotations DIR
    python3 benchmarks/accuracy.py --reference DIR --data DIR --feat_dim 40 --num_sample 16

The videos have real annotations and planted features (tools/make_sample_data.py), at a small scale so that the
reference takes minutes; or they are those of a data set in the reference's layout (docs/datasets/hapt.md). Both
programs run from their command lines: reference, ours in float32 (O0), ours in mixed precision (O1). The output is
AR@1, 10, 100 and AUC of every run, then mean and standard deviation.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import numpy as np
from reference import check_clone

from bmn.data.annotations import read_videos
from bmn.errors import UserError, run_as_program
from bmn.files import write_json
from bmn.options import with_defaults
from bmn.values import video_id

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
VIDEO_INFO = "data/activitynet_annotations/video_info_new.csv"
VIDEO_ANNO = "data/activitynet_annotations/anet_anno_action.json"
PROGRAMS = ("reference", "ours O0", "ours O1")
FIGURES = ("AR@1", "AR@10", "AR@100", "AUC")


def run(folder, *command):
    """Run a Python program in ``folder``. Returns what it printed."""
    done = subprocess.run([sys.executable] + [str(part) for part in command], cwd=folder, capture_output=True,
                          text=True, env=dict(os.environ, MPLBACKEND="Agg"), check=False)
    if done.returncode:
        raise UserError("%s failed: %s" % (" ".join(map(str, command)), done.stderr.strip()[-2000:]))
    return done.stdout


def figures(output):
    """The evaluation's figures in an output, as percentages."""
    found = {"AUC": float(re.search(r"AR vs AN curve: ([\d.]+)%", output).group(1))}
    for name in FIGURES[:-1]:
        found[name] = 100 * float(re.search(r"^%s is \t\s*([\d.e-]+)$" % name, output, re.MULTILINE).group(1))
    return found


def write_ground_truth(folder):
    """Write the ground truth of the reference where it looks for it."""
    files = {"video_info": os.path.join(folder, VIDEO_INFO), "video_anno": os.path.join(folder, VIDEO_ANNO)}
    videos = read_videos(with_defaults(files), "validation")
    write_json(os.path.join(folder, "Evaluation/data/activity_net_1_3_new.json"), {
        "database": {video_id(name): {"subset": "validation", "duration": video.seconds, "annotations": [
            {"segment": [start, end], "label": label} for start, end, label in video.actions]}
            for name, video in videos.items()},
        "taxonomy": [], "version": "VERSION 1.3"})
    os.makedirs(os.path.join(folder, "output"))


def reference_run(folder, args, seed, common):
    """Train and evaluate the reference. Returns its figures."""
    program = (os.path.join(HERE, "reference.py"), "--reference", os.path.abspath(args.reference), "--seed", seed, "--")
    common += ("--checkpoint_path", "reference-%d" % seed, "--feature_path", "data/activitynet_feature_cuhk/",
               "--video_info", VIDEO_INFO, "--video_anno", VIDEO_ANNO, "--post_process_thread", "2")
    run(folder, *program, "--mode", "train", *common)
    return figures(run(folder, *program, "--mode", "inference", *common))


def our_run(folder, args, seed, common, level):
    """Train and evaluate ours at an opt_level. Returns its figures."""
    return figures(run(folder, os.path.join(ROOT, "main.py"), "--mode", "full", "--seed", seed, "--opt_level", level,
                       "--device", "cpu", "--save_csv", 0, "--checkpoint_path", "%s-%d" % (level, seed), *common))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", required=True, help="clone of the reference")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--annotations", help="folder of the real annotation files")
    data.add_argument("--data", help="data set in the reference's layout: annotations and features")
    parser.add_argument("--feat_dim", type=int, default=64)
    parser.add_argument("--num_sample", type=int, default=32)
    parser.add_argument("--programs", nargs="+", default=PROGRAMS, choices=PROGRAMS)
    parser.add_argument("--videos", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--temporal_scale", type=int, default=32)
    parser.add_argument("--noise", type=float, default=1.5, help="difficulty of the planted features")
    args = parser.parse_args()
    check_clone(args.reference)
    scale = ("--temporal_scale", args.temporal_scale, "--feat_dim", args.feat_dim)
    common = (*scale, "--batch_size", args.batch_size, "--train_epochs", args.epochs, "--num_sample", args.num_sample)
    with tempfile.TemporaryDirectory() as folder:
        if args.data:
            os.symlink(os.path.abspath(args.data), os.path.join(folder, "data"))
        else:
            run(folder, os.path.join(ROOT, "tools", "make_sample_data.py"), "--videos", args.videos, "--noise",
                args.noise, "--annotations", os.path.abspath(args.annotations), *scale)
        write_ground_truth(folder)
        rows = {name: [] for name in args.programs}
        print("%-12s %5s %8s %8s %8s %8s" % (("program", "seed") + FIGURES))
        for seed in range(args.seeds):
            for name in rows:
                found = (reference_run(folder, args, seed, common) if name == "reference"
                         else our_run(folder, args, seed, common, name[-2:]))
                rows[name].append([found[figure] for figure in FIGURES])
                print("%-12s %5d %8.2f %8.2f %8.2f %8.2f" % (name, seed, *rows[name][-1]), flush=True)
    print("mean and standard deviation over %d seeds" % args.seeds)
    for name, values in rows.items():
        spread = zip(np.mean(values, 0), np.std(values, 0, ddof=min(1, args.seeds - 1)))
        print("%-12s" % name, "".join("  %6.2f +- %.2f" % pair for pair in spread))


if __name__ == "__main__":
    run_as_program(main)
