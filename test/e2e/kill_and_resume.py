"""Kill a training run at random moments, again and again, and look at what it leaves.

    python3 kill_and_resume.py KILLS SEED main.py's options...

A run is started with --resume auto, killed with SIGKILL after a random time, and started again, KILLS times. Then it
does one more epoch. After every kill the checkpoints must be readable, and no epoch may be lost. The output is one JSON
line: kills, how many of them hit a file being written, and epochs. The processes are forked from one that has imported
everything, so they spend their time in training and saving.
"""
import json
import os
import random
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
import main  # isort: skip

from bmn.errors import run_as_program
from bmn.options import BEST
from bmn.training import checkpoint
from opts import parse_opt


def start(options, log):
    child = os.fork()
    if child:
        return child
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["main.py"] + options
    try:
        run_as_program(main.main, parse_opt())
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)


def epochs_done():
    """{file name: epochs done} of the checkpoints; an error where one cannot be read."""
    paths = [os.path.join("checkpoint", name) for name in (checkpoint.LAST, BEST)]
    return {os.path.basename(path): checkpoint.read(path)["epoch"] for path in paths if os.path.exists(path)}


def unfinished():
    """Temporary files that kills have left."""
    return {name for name in os.listdir("checkpoint") if name.endswith(".tmp")}


def time_to_save(options, log):
    """Seconds that a run takes to its first checkpoint; it is killed then."""
    began = time.time()
    child = start(options, log)
    while not os.path.exists(os.path.join("checkpoint", checkpoint.LAST)):
        if os.waitpid(child, os.WNOHANG)[0]:
            raise SystemExit("the run ended before its first checkpoint: see log.txt")
        time.sleep(0.05)
    kill(child)
    return time.time() - began


def kill(child):
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if status != signal.SIGKILL:
        raise SystemExit("the run ended by itself, with status %d: see log.txt" % status)


def run(kills, seed, options):
    generator, saving = random.Random(seed), 0
    options = options + ["--mode", "train", "--resume", "auto"]
    with open("log.txt", "wb", buffering=0) as log:
        longest = 2 * time_to_save(options + ["--train_epochs", "1000000"], log.fileno())
        done = epochs_done()
        for _ in range(kills):
            before = unfinished()
            child = start(options + ["--train_epochs", "1000000"], log.fileno())
            time.sleep(generator.uniform(0, longest))
            kill(child)
            saving += unfinished() != before
            now = epochs_done()
            if any(now.get(name, 0) < epoch for name, epoch in done.items()):
                raise SystemExit("went back from %s to %s" % (done, now))
            # About half of the kills should come after an epoch, even if the machine gets busier or idler.
            gained = now[checkpoint.LAST] - done[checkpoint.LAST]
            longest *= 1.1 if gained == 0 else 0.8 if gained > 3 else 0.95
            done = now
        epochs = str(done[checkpoint.LAST] + 1)
        _, status = os.waitpid(start(options + ["--train_epochs", epochs], log.fileno()), 0)
    if status:
        raise SystemExit("the last run failed: see log.txt")
    print(json.dumps({"kills": kills, "while saving": saving, "epochs": int(epochs)}))


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
