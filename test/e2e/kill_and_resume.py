"""Kill a training run at random moments, again and again, and look at what it leaves.

    python3 kill_and_resume.py KILLS SEED SIGNAL RANKS main.py's options...

A run of RANKS processes is started with --resume auto, gets a signal after a random time, and is started again, KILLS
times. SIGNAL is KILL, or TERM: then it is SIGTERM or SIGUSR1, sent to all processes or to one of them. In the end it
does one more epoch. After every kill the checkpoints must be readable, and nothing that was saved may be lost. The
output is one JSON line: kills, how many of them hit a file being written, how many stopped within an
epoch, and epochs. The processes are forked from one that has imported everything, so they spend their time in training
and saving.
"""
import json
import os
import random
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
import main  # isort: skip

from bmn.errors import run_as_program
from bmn.options import BEST
from bmn.training import checkpoint
from opts import parse_opt


def start(options, log, ranks=1):
    """The processes of a run."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    environment = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start_rank(options, log, dict(environment, RANK=str(rank), LOCAL_RANK=str(rank)) if ranks > 1 else {})
            for rank in range(ranks)]


def start_rank(options, log, environment):
    child = os.fork()
    if child:
        return child
    os.environ.update(environment)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["main.py"] + options
    try:
        run_as_program(main.main, parse_opt())
    except SystemExit as ended:
        os._exit(ended.code)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)


def epochs_done():
    """{file name: (epochs done, steps of the next)} of the checkpoints; an error where one cannot be read."""
    paths = [os.path.join("checkpoint", name) for name in (checkpoint.LAST, BEST)]
    states = {os.path.basename(path): checkpoint.read(path) for path in paths if os.path.exists(path)}
    return {name: (state["epoch"], (state.get("within_epoch") or {"steps": 0})["steps"])
            for name, state in states.items()}


def unfinished():
    """Temporary files that kills have left."""
    return {name for name in os.listdir("checkpoint") if name.endswith(".tmp")}


def time_to_save(options, log, ranks):
    """Seconds that a run takes to its first checkpoint; it is killed then."""
    began = time.time()
    children = start(options, log, ranks)
    while not os.path.exists(os.path.join("checkpoint", checkpoint.LAST)):
        if os.waitpid(children[0], os.WNOHANG)[0]:
            raise SystemExit("the run ended before its first checkpoint: see log.txt")
        time.sleep(0.05)
    kill(children)
    return time.time() - began


def kill(children):
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        _, status = os.waitpid(child, 0)
        if status not in (signal.SIGKILL, 1 << 8):      # 1: it had noticed the end of another one
            raise SystemExit("the run ended by itself, with status %d: see log.txt" % status)


def stop(children, generator):
    """Ask a run to stop, through all its processes or one of them."""
    for child in generator.choice([children, [generator.choice(children)]]):
        os.kill(child, generator.choice([signal.SIGTERM, signal.SIGUSR1]))
    found = {os.waitpid(child, 0)[1] for child in children}
    # 1: before the training, the end of one process ends the others; the last two: before its first line.
    if not found <= {143 << 8, 1 << 8, signal.SIGTERM, signal.SIGUSR1}:
        raise SystemExit("the run ended with status %s: see log.txt" % found)


def run(kills, seed, how, ranks, options):
    generator, saving, within = random.Random(seed), 0, 0
    options = options + ["--mode", "train", "--resume", "auto"]
    with open("log.txt", "wb", buffering=0) as log:
        longest = 2 * time_to_save(options + ["--train_epochs", "1000000"], log.fileno(), ranks)
        done = epochs_done()
        for _ in range(kills):
            before = unfinished()
            children = start(options + ["--train_epochs", "1000000"], log.fileno(), ranks)
            time.sleep(generator.uniform(0, longest))
            if how == "KILL":
                kill(children)
            else:
                stop(children, generator)
            saving += unfinished() != before
            now = epochs_done()
            if any(now.get(name, (0, 0)) < epoch for name, epoch in done.items()):
                raise SystemExit("went back from %s to %s" % (done, now))
            # About half of the kills should come after an epoch, even if the machine gets busier or idler.
            within += now[checkpoint.LAST] != done[checkpoint.LAST] and now[checkpoint.LAST][1] > 0
            gained = now[checkpoint.LAST][0] - done[checkpoint.LAST][0]
            longest *= 1.1 if gained == 0 else 0.8 if gained > 3 else 0.95
            done = now
        epochs = str(done[checkpoint.LAST][0] + 1)
        children = start(options + ["--train_epochs", epochs], log.fileno(), ranks)
        statuses = [os.waitpid(child, 0)[1] for child in children]
        if any(statuses):
            raise SystemExit("the last run failed: see log.txt")
    print(json.dumps({"kills": kills, "while saving": saving, "within": within, "epochs": int(epochs)}))


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5:])
