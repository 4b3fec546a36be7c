"""How time and memory grow: with the batch, with T, with the number of videos and with the number of processes.

    python3 benchmarks/scale.py [--figure docs/images/scale.png]

It measures ours alone, in about a quarter of an hour. Batch and T: a training step and an inference in fresh processes
of one thread (network.py). Videos: a whole training epoch with its validation, and a whole inference, from the command
line. Processes: the same epoch under torchrun, each process on one thread; more processes than processors gain nothing.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from accuracy import ROOT, run
from all import measured
from network import PRECISIONS, fresh

from bmn.errors import run_as_program
from bmn.files import check_writable
from bmn.options import COUNT
from bmn.results import figures

BATCHES, SCALES, VIDEOS = (1, 2, 4, 8, 16), (50, 100, 200, 400), (50, 100, 200, 400)
WORKS = (("train", "training step", "#0072b2"), ("infer", "inference", "#d55e00"))
MAIN = os.path.join(ROOT, "main.py")


def by_network(title, cases):
    """{work: [(x, processor seconds a video, MB)]} of steps at each (x, T, batch)."""
    print("\n%s, %s: processor seconds a video, MB" % (title, PRECISIONS[-1]))
    found = {name: [] for _, name, _ in WORKS}
    for x, scale, batch in cases:
        for work, name, _ in WORKS:
            found[name].append((x, *fresh(None, "ours", work, PRECISIONS[-1], scale, batch)))
        show_last(found)
    return found


def show_last(found):
    print("%6d" % next(iter(found.values()))[-1][0] + "".join(
        "   %s %9.4f %6.0f" % (name, *points[-1][1:]) for name, points in found.items()), flush=True)


def by_videos(folder):
    """{work: [(videos, processor seconds, MB)]} of whole runs; the sample data stays in ``folder``."""
    print("\nvideos, training and validation: processor seconds of a run, MB")
    found = {"training epoch": [], "inference": []}
    for videos in VIDEOS:
        where = os.path.join(folder, str(videos))
        os.mkdir(where)
        run(where, os.path.join(ROOT, "tools", "make_sample_data.py"), "--videos", videos)
        common = (MAIN, "--device", "cpu", "--batch_size", 8, "--train_epochs", 1, "--mode")
        for name, mode in (("training epoch", "train"), ("inference", "inference")):
            found[name].append((videos, *measured(where, (*common, mode))))
        show_last(found)
    return found


def by_processes(folder, most):
    """[(processes, training videos a second, MB of all processes)]."""
    print("\nprocesses: training videos a second, MB of all of them")
    found = []
    for number in range(1, most + 1):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", number, MAIN, "--device", "cpu",
                   "--mode", "train", "--train_epochs", 1, "--batch_size", 8 * number, "--checkpoint_path", number]
        done = subprocess.run([str(part) for part in command], cwd=os.path.join(folder, str(VIDEOS[-1])), check=True,
                              stdout=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
        with open(os.path.join(folder, str(VIDEOS[-1]), str(number), "metrics.jsonl")) as handle:
            memory = float(re.search(r'"peak_memory_mb": ([\d.]+)', handle.read()).group(1)) * number
        found.append((number, float(re.search(r"^Epoch: 0,FPS: ([\d.]+)", done.stdout, re.MULTILINE).group(1)), memory))
        print("%6d   %7.2f %7.0f" % found[-1], flush=True)
    return found


def draw(columns):
    """Two rows of small plots: time above, memory below; a column for each of (label, what, {name: points}, scale)."""
    figure = figures.new_figure((13, 5.6))
    axes = figure.subplots(2, len(columns), sharex="col")
    for (above, below), (label, what, lines, scale) in zip(axes.T, columns):
        for (name, points), (_, _, colour) in zip(lines.items(), WORKS):
            x, values, memory = zip(*points)
            above.plot(x, values, "o-", color=colour, label=name)
            below.plot(x, memory, "o-", color=colour)
        above.set_title(what, fontsize=10)
        below.set_title("peak memory (MB)", fontsize=10)
        below.set_xlabel(label)
        for one in (above, below):
            one.set_xscale(scale)
            one.set_xticks(x)
            one.set_xticklabels([str(value) for value in x])
            one.minorticks_off()
            one.grid(True, alpha=0.4)
            if scale == "log" and one is above:
                one.set_yscale("log")
            else:
                one.set_ylim(bottom=0)
        if len(lines) > 1:
            above.legend(fontsize=9)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--figure", help="picture to draw; its name ends in .png, .svg or .pdf")
    parser.add_argument("--processes", type=COUNT, default=os.cpu_count(), help="most processes (default: processors)")
    args = parser.parse_args()
    if args.figure:
        check_writable(args.figure)
        figures.picture_format(args.figure)
    with tempfile.TemporaryDirectory() as folder:
        columns = [
            ("batch", "seconds a video, by batch", by_network("batch", [(b, 100, b) for b in BATCHES]), "linear"),
            ("T", "seconds a video, by T (batch 2)", by_network("T", [(t, t, 2) for t in SCALES]), "log"),
            ("videos", "seconds of a whole run", by_videos(folder), "linear"),
            ("processes", "training videos a second", {"": by_processes(folder, args.processes)}, "linear")]
    if args.figure:
        figures.save(draw(columns), args.figure)


if __name__ == "__main__":
    run_as_program(main)
