"""Seconds from the network's maps to AR@AN, and of inference as a whole: ours and the reference.

    OMP_NUM_THREADS=1 python3 benchmarks/postprocess.py --reference DIR [--inference 300]

DIR is a clone of github.com/JJBOY/BMN-Boundary-Matching-Network at a92c1d7. Times are processor time of one
core, on the same smooth random maps for both. The first rows are decoding, soft-NMS and the result file of a video; the
reference passes the scores on in CSV files, which are timed apart. Then comes the evaluation of 4,728 videos with 100
proposals each, from the result file and from memory as in main.py. --inference runs both programs from their command
lines, from feature files to AR@AN, on that many videos with planted features.
"""
import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import numpy as np
import pandas
import torch
from accuracy import ROOT, VIDEO_ANNO, VIDEO_INFO, run, write_ground_truth
from reference import load_reference

import eval as evaluation
import post_processing
from bmn.data.annotations import read_entry
from bmn.errors import run_as_program
from bmn.files import read_json, write_json
from bmn.options import DEFAULTS
from bmn.results.score_tables import write_table
from models import BMN

SCALE = 100
BATCH = 16              # as in main.py's inference
VIDEO = {"duration_second": 123.4, "duration_frame": 3001, "feature_frame": 2992, "annotations": []}      # theirs
REFERENCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reference.py")


def smooth_maps(count):
    """Maps like a network's: float32 [count, 2, T, T], [count, T], [count, T]."""
    random = np.random.RandomState(0)

    def smooth(*shape):
        value = random.randn(count, *shape)
        for axis in [axis for axis, size in enumerate(value.shape) if axis and size == SCALE] * 6:
            value = (np.roll(value, 1, axis) + value + np.roll(value, -1, axis)) / 3
        return (1 / (1 + np.exp(-2 * value / value.std()))).astype(np.float32)
    return smooth(2, SCALE, SCALE), smooth(SCALE), smooth(SCALE)


class Stopwatch:
    """Adds up the processor time of the functions that it wraps."""

    def __init__(self):
        self.seconds = 0.0

    def around(self, function):
        def timed(*args, **options):
            began = time.process_time()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.process_time() - began
        return timed


class MapsForNetwork(torch.nn.Module):
    """Replaces the network: a video's features are its number, and its maps are known."""

    def __init__(self, maps):
        super().__init__()
        self.maps = [torch.from_numpy(one) for one in maps]

    def forward(self, number):
        return tuple(one[int(number)][None] for one in self.maps)


class Numbers:
    """Replaces the data set: a video's features are its number."""

    def __init__(self, names):
        self.video_list = names

    def __len__(self):
        return len(self.video_list)

    def __getitem__(self, index):
        return index, torch.tensor(float(index))


def reference_result(folder, maps, names):
    """Run the reference from maps to its result file. Returns (seconds, seconds of them for CSV files)."""
    program, post = load_reference(folder, "main", "post_processing")
    program.BMN, program.VideoDataSet = lambda opt: MapsForNetwork(maps), lambda opt, subset: Numbers(names)
    torch.save({"state_dict": {}}, "BMN_best.pth.tar")
    os.makedirs("output/BMN_results")
    whole, tables = Stopwatch(), Stopwatch()
    write, read = pandas.DataFrame.to_csv, pandas.read_csv
    pandas.DataFrame.to_csv, pandas.read_csv = tables.around(write), tables.around(read)

    def work():
        program.BMN_inference({"checkpoint_path": ".", "temporal_scale": SCALE})
        post.result_dict = {}
        post.video_post_process(DEFAULTS, names, dict.fromkeys(names, VIDEO))
        write_json("reference.json", {"version": "VERSION 1.3", "results": post.result_dict, "external_data": {}})
    try:
        whole.around(work)()
    finally:
        pandas.DataFrame.to_csv, pandas.read_csv = write, read
    return whole.seconds, tables.seconds


def our_result(maps, names):
    """Run ours from maps to its result file, without CSV files."""
    found = {}
    for first in range(0, len(names), BATCH):
        part = slice(first, first + BATCH)
        found.update(zip(names[part], post_processing.proposals(*(one[part] for one in maps), DEFAULTS)))
    return post_processing.write_result("ours.json", dict.fromkeys(names, read_entry("v", VIDEO, "")), found)


def check_same():
    """Check that both result files hold the same proposals in the same order."""
    ours, theirs = (read_json(path, "result")["results"] for path in ("ours.json", "reference.json"))
    for name, rows in theirs.items():
        for one, other in zip(ours[name], rows):
            np.testing.assert_allclose([one["score"], *one["segment"]], [other["score"], *other["segment"]], rtol=1e-9)


def compare_post_processing(folder, count):
    """[(what, seconds a video of the reference, of ours)]."""
    names = ["v_%03d" % index for index in range(count)]
    maps = smooth_maps(count)
    few = max(1, count // 10)       # the reference is slow
    whole, tables = reference_result(folder, [one[:few] for one in maps], names[:few])
    our_result(maps, names)         # from now on it is cached which pair suppresses which
    ours, export = Stopwatch(), Stopwatch()
    ours.around(our_result)(maps, names)
    check_same()
    for index, name in enumerate(names):
        export.around(write_table)("output/BMN_results/%s.csv" % name, *(one[index] for one in maps))
    return [("maps to result file", whole / few, ours.seconds / count),
            ("  without CSV files", (whole - tables) / few, ours.seconds / count),
            ("  with CSV files", whole / few, (ours.seconds + export.seconds) / count)]


def compare_evaluation(folder, count):
    """[(what, seconds of the reference, of ours)]."""
    random = np.random.RandomState(0)
    database, results = {}, {}
    for index in range(count):
        duration = 20 + 200 * random.rand()
        points = np.sort(random.rand(100, 2), axis=1) * duration
        scores = np.sort(random.rand(100))[::-1]
        results[str(index)] = [{"score": score, "segment": segment}
                               for score, segment in zip(scores.tolist(), points.tolist())]
        database[str(index)] = {"subset": "validation", "duration": duration, "annotations": [
            {"segment": segment, "label": "a"} for segment in
            (np.sort(random.rand(1 + index % 3, 2), axis=1) * duration).tolist()]}
    write_json("truth.json", {"database": database, "taxonomy": [], "version": ""})
    write_json("result.json", {"results": results, "version": "", "external_data": {}})
    in_memory = evaluation.read_proposals("result.json")
    theirs, ours, memory = Stopwatch(), Stopwatch(), Stopwatch()
    reference, = load_reference(folder, "eval")
    opt = dict(DEFAULTS, ground_truth="truth.json", result_file="result.json", save_fig_path="curve.png")
    with contextlib.redirect_stdout(io.StringIO()):
        wanted = theirs.around(reference.run_evaluation)("truth.json", "result.json")
        found = ours.around(evaluation.run_evaluation)("truth.json", "result.json")
        memory.around(evaluation.evaluation_proposal)(opt, in_memory)
    for one, other in zip(found, wanted):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)
    return [("evaluation, from the result file", theirs.seconds, ours.seconds),
            ("evaluation, proposals at hand, figure drawn", theirs.seconds, memory.seconds)]


def compare_inference(folder, count):
    """[(what, seconds of the reference, of ours)]: feature files to AR@AN, start of the programs included."""
    work = os.path.abspath("inference")
    os.mkdir(work)
    run(work, os.path.join(ROOT, "tools", "make_sample_data.py"), "--videos", count)
    listed = os.path.join(work, VIDEO_INFO)
    with open(listed) as handle:
        text = handle.read()
    with open(listed, "w") as handle:
        handle.write(re.sub(",(training|testing),", ",validation,", text))
    write_ground_truth(work)
    torch.save({"epoch": 0, "state_dict": BMN(DEFAULTS).state_dict()}, os.path.join(work, "network.pth.tar"))
    run(work, os.path.join(ROOT, "tools", "convert_checkpoint.py"), "network.pth.tar", "checkpoint/BMN_best.pth.tar",
        "--to", "reference")
    common = ("--mode", "inference", "--video_info", VIDEO_INFO, "--video_anno", VIDEO_ANNO, "--post_process_thread", 1,
              "--feature_path", "data/activitynet_feature_cuhk/")
    before = sum(os.times()[2:4])       # processor time of the children
    run(work, os.path.join(ROOT, "main.py"), *common, "--device", "cpu", "--opt_level", "O0", "--num_workers", 0)
    between = sum(os.times()[2:4])
    run(work, REFERENCE, "--reference", folder, "--", *common)
    return [("inference of %d videos, start to AR@AN" % count, sum(os.times()[2:4]) - between, between - before)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", required=True, help="clone of the reference")
    parser.add_argument("--videos", type=int, default=160, help="videos from maps to result (the reference: a tenth)")
    parser.add_argument("--evaluated", type=int, default=4728, help="videos of the evaluation")
    parser.add_argument("--inference", type=int, default=0, help="videos of a whole inference (default: none)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder, here = os.path.abspath(args.reference), os.getcwd()
    print("PyTorch %s, NumPy %s, pandas %s" % (torch.__version__, np.__version__, pandas.__version__))
    print("%-46s %13s %13s %8s" % ("seconds", "reference", "ours", "ratio"))
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        try:
            for compare, count in ((compare_post_processing, args.videos), (compare_evaluation, args.evaluated),
                                   (compare_inference, args.inference)):
                for name, theirs, ours in compare(folder, count) if count else ():
                    print("%-46s %13.5f %13.5f %7.1fx" % (name, theirs, ours, theirs / ours), flush=True)
        finally:
            os.chdir(here)


if __name__ == "__main__":
    run_as_program(main)
