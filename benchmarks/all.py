"""All comparisons with the reference in one table: network, data, post-processing, evaluation, whole runs, memory.

    python3 benchmarks/all.py --reference DIR       or: make bench REFERENCE=DIR

DIR is a clone of github.com/JJBOY/BMN-Boundary-Matching-Network at a92c1d7. All takes about an hour, mostly for the
reference. The rows come from network.py, data.py and postprocess.py beside this file, which print more when they
run alone. The last rows are a training epoch (validation included) and an inference of both programs, started from
their command lines on the same videos. Times are processor time of one thread; memory is the peak of the process.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from accuracy import HERE, ROOT, VIDEO_ANNO, VIDEO_INFO, run, write_ground_truth
from reference import check_clone

from bmn.errors import UserError, run_as_program

PARTS = (("network.py", "--batch", "8"), ("data.py",), ("postprocess.py",))
ROW = re.compile(r"^(\S.*?)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)x\b", re.MULTILINE)
LINE = "%-48s %12s %12s %9s"


def measured(folder, command):
    """(processor seconds, peak MB) of a program in ``folder``, on one thread."""
    process = subprocess.Popen([sys.executable] + [str(part) for part in command], cwd=folder,
                               stdout=subprocess.DEVNULL, env=dict(os.environ, OMP_NUM_THREADS="1", MPLBACKEND="Agg"))
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError("%s failed, see its message above" % " ".join(map(str, command)))
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def whole_runs(reference, videos):
    """Rows (name, reference, ours) of a training epoch and an inference from the command line."""
    with tempfile.TemporaryDirectory() as folder:
        run(folder, os.path.join(ROOT, "tools", "make_sample_data.py"), "--videos", videos)
        write_ground_truth(folder)
        common = ("--train_epochs", "1", "--batch_size", "8", "--feature_path", "data/activitynet_feature_cuhk/",
                  "--video_info", VIDEO_INFO, "--video_anno", VIDEO_ANNO)
        theirs = (os.path.join(HERE, "reference.py"), "--reference", os.path.abspath(reference), "--", *common,
                  "--checkpoint_path", "theirs", "--post_process_thread", "1", "--mode")
        ours = (os.path.join(ROOT, "main.py"), "--device", "cpu", "--checkpoint_path", "ours", *common, "--mode")
        for mode, name in (("train", "training epoch"), ("inference", "inference to AR@AN")):
            seconds, memory = measured(folder, (*theirs, mode))
            for level in ("O0", "O1"):
                our_seconds, our_memory = measured(folder, (*ours, mode, "--opt_level", level))
                yield "%s, data of %d videos, %s (s)" % (name, videos, level), seconds, our_seconds
            yield "%s, memory (MB)" % name, memory, our_memory


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", required=True, help="clone of the reference")
    parser.add_argument("--videos", type=int, default=300, help="videos of the whole runs")
    args = parser.parse_args()
    check_clone(args.reference)
    print(LINE % ("", "reference", "ours", "ratio"), flush=True)
    for script, *options in PARTS:
        output = run(ROOT, os.path.join(HERE, script), "--reference", os.path.abspath(args.reference), *options)
        print("-- " + script)
        for name, theirs, ours, ratio in ROW.findall(output):
            print(LINE % (name, theirs, ours, ratio + "x"), flush=True)
    print("-- whole runs")
    for name, theirs, ours in whole_runs(args.reference, args.videos):
        print(LINE % (name, "%.1f" % theirs, "%.1f" % ours, "%.1fx" % (theirs / ours)), flush=True)


if __name__ == "__main__":
    run_as_program(main)
