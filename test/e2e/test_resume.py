"""A run that is interrupted, in any way, goes on as if nothing had happened, or says in one sentence why it cannot."""
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, SMALL, Workshop, torchrun

from bmn.machine.device import TORCH
from bmn.options import BEST
from bmn.training import checkpoint

COMMON = ("--device", "cpu") + SMALL + ("--num_sample", "2", "--num_workers", "0", "--batch_size", "8")
MEASURED = ("fps", "time", "data_time", "peak_memory_mb")


def train(workshop, *options, processes=1, **how):
    """Train; returns the finished process."""
    launcher = [sys.executable] + (torchrun(processes) if processes > 1 else [])
    command = launcher + [os.path.join(ROOT, "main.py"), *COMMON, "--mode", "train"] + [str(word) for word in options]
    return subprocess.run(command, cwd=str(workshop.folder), env=workshop.environment(), capture_output=True,
                          text=True, timeout=600, check=False, **how)


def succeeded(process):
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def failed(process):
    """The one sentence that it ended with."""
    assert process.returncode == 1, process.stdout + process.stderr
    line, = process.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def losses(workshop, folder):
    """metrics.jsonl without the times and the memory."""
    return [{name: value for name, value in json.loads(line).items() if name not in MEASURED}
            for line in workshop.text(folder + "/metrics.jsonl").splitlines()]


def tensors(value, path=""):
    """{path: tensor} of everything in a checkpoint."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {name: tensor for key, item in items for name, tensor in tensors(item, "%s/%s" % (path, key)).items()}


def same_run(workshop, one, other):
    """Both folders hold the same run to the last digit: losses, weights, optimizer, random states."""
    assert losses(workshop, one) == losses(workshop, other)
    for name in (checkpoint.LAST, BEST):
        states = [checkpoint.read(str(workshop.folder / folder / name)) for folder in (one, other)]
        found, wanted = (tensors(state) for state in states)
        assert list(found) == list(wanted)
        assert all(torch.equal(found[path], wanted[path]) for path in wanted)
        assert states[0]["scheduler"] == states[1]["scheduler"] and states[0]["best_loss"] == states[1]["best_loss"]


@pytest.mark.slow
@pytest.mark.skipif(TORCH < (2, 0), reason="torch.distributed.run is of later versions")
@pytest.mark.parametrize(("processes", "opt_level"), [(1, "O1"), (2, "O0"), (2, "O1")])
def test_a_resumed_run_equals_the_uninterrupted_one(workshop, processes, opt_level):
    """One process at O0 is tested below, where it is killed instead of stopped."""
    common = ("--opt_level", opt_level, "--step_size", 2)       # the learning rate falls where it is interrupted
    succeeded(train(workshop, *common, "--train_epochs", 4, "--checkpoint_path", "whole", processes=processes))
    succeeded(train(workshop, *common, "--train_epochs", 2, processes=processes))
    log = succeeded(train(workshop, *common, "--train_epochs", 4, "--resume", "auto", processes=processes))
    assert "2 of 4 epochs are done" in log and "Epoch: 2," in log and "Epoch: 1," not in log
    same_run(workshop, "checkpoint", "whole")
    assert len({line["lr"] for line in losses(workshop, "whole")}) == 2


def kill_and_resume(workshop, *arguments):
    process = subprocess.run([sys.executable, os.path.join(ROOT, "test", "e2e", "kill_and_resume.py"), *arguments],
                             cwd=str(workshop.folder), env=workshop.environment(), capture_output=True, text=True,
                             check=False)
    return json.loads(succeeded(process))


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(workshop):
    """There are BMN_KILLS of them, 12 where that is not set. The result equals the uninterrupted run."""
    kills = os.environ.get("BMN_KILLS", "12")
    counts = kill_and_resume(workshop, kills, "1", "KILL", "1", *COMMON, "--opt_level", "O0")
    succeeded(train(workshop, "--opt_level", "O0", "--train_epochs", counts["epochs"], "--checkpoint_path", "whole"))
    same_run(workshop, "checkpoint", "whole")


@pytest.mark.slow
@pytest.mark.skipif(TORCH < (2, 0), reason="make test-legacy tries several processes there")
@pytest.mark.parametrize(("ranks", "opt_level"), [("1", "O1"), ("2", "O0")])
def test_signals_of_a_scheduler_change_nothing(workshop, ranks, opt_level):
    """SIGTERM or SIGUSR1 at random moments, BMN_STOPS of them: the run is saved within its epoch and goes on there."""
    common = (*COMMON[:-1], "4", "--opt_level", opt_level)              # six steps in an epoch
    counts = kill_and_resume(workshop, os.environ.get("BMN_STOPS", "6"), "2", "TERM", ranks, *common)
    succeeded(train(workshop, "--batch_size", "4", "--opt_level", opt_level, "--train_epochs", counts["epochs"],
                    "--checkpoint_path", "whole", processes=int(ranks)))
    same_run(workshop, "checkpoint", "whole")
    assert counts["within"] > 0


@pytest.mark.slow
def test_a_run_that_is_saved_every_so_often_loses_little(workshop):
    """--save_every without a signal: killed, it goes on within the epoch, and the result is the same."""
    common = ("--opt_level", "O0", "--batch_size", "2")                 # twelve steps in an epoch
    command = [sys.executable, os.path.join(ROOT, "main.py"), *COMMON, *common, "--train_epochs", "100", "--save_every",
               "0.001"]
    process = subprocess.Popen(command, cwd=str(workshop.folder), env=workshop.environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("saved after step "):
            break
    process.kill()
    process.communicate()
    state = checkpoint.read(str(workshop.folder / "checkpoint" / checkpoint.LAST))
    epochs = state["epoch"] + 1
    log = succeeded(train(workshop, *common, "--resume", "auto", "--train_epochs", epochs))
    assert " of the next" in log or state["within_epoch"] is None
    succeeded(train(workshop, *common, "--train_epochs", epochs, "--checkpoint_path", "whole"))
    same_run(workshop, "checkpoint", "whole")


@pytest.mark.slow
@pytest.mark.skipif(TORCH < (2, 0), reason="older versions of torch.distributed.run start no rank again here")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_launcher_that_starts_a_run_again_goes_on_with_it(workshop, number):
    """torchrun --max_restarts with --resume auto: a rank is killed or stopped; the result is the whole run's."""
    common = ("--opt_level", "O0", "--batch_size", "4", "--train_epochs", "12")
    command = [sys.executable, *torchrun(2), "--max_restarts", "3", os.path.join(ROOT, "main.py"), *COMMON, *common,
               "--resume", "auto"]
    process = subprocess.Popen(command, cwd=str(workshop.folder), env=workshop.environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    output = []
    for line in process.stdout:
        output.append(line)
        if line.startswith("Epoch: 1,"):
            break
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open("/proc/%s/stat" % pid) as stat, \
                open("/proc/%s/environ" % pid, "rb") as environ:
            if int(stat.read().rpartition(")")[2].split()[1]) == process.pid and b"\0RANK=1\0" in environ.read():
                os.kill(int(pid), number)
    rest, errors = process.communicate(timeout=600)
    assert process.returncode == 0, rest + errors
    assert rest.count("resumed from") == 1
    succeeded(train(workshop, *common, "--checkpoint_path", "whole", processes=2))
    same_run(workshop, "checkpoint", "whole")


SAVING = """
import os, random, signal, sys, time, torch
from bmn.options import BEST
from bmn.training import checkpoint
generator, kills = random.Random(1), 0
state = {"epoch": 0, "state_dict": {"a": torch.zeros(200000)}}
checkpoint.save("x.pth", state)
while kills < 200:
    child = os.fork()
    if not child:
        while True:
            state["epoch"] += 1
            checkpoint.save("x.pth", state)
    time.sleep(generator.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
    found = checkpoint.read("x.pth")["epoch"]
    assert found >= state["epoch"], "went back"
    state["epoch"] = found
print(state["epoch"], sum(name.endswith(".tmp") for name in os.listdir(".")))
"""


def test_kills_while_saving_leave_a_whole_checkpoint(tmp_path):
    process = subprocess.run([sys.executable, "-c", SAVING], cwd=str(tmp_path), capture_output=True,
                             text=True, check=False,
                             env=dict(os.environ, PYTHONPATH=ROOT, OMP_NUM_THREADS="1"))
    epochs, hits = map(int, succeeded(process).split())
    assert epochs > 0 and hits > 50         # so many of 200 kills left half a file, under a temporary name


@pytest.mark.slow
def test_a_folder_removed_in_between_is_made_again_or_reported(workshop):
    """It is made again at the end of the epoch, or the run says that it could not write."""
    last = workshop.folder / "checkpoint" / checkpoint.LAST
    process = subprocess.Popen([sys.executable, os.path.join(ROOT, "main.py"), *COMMON, "--train_epochs", "8"],
                               cwd=str(workshop.folder), env=workshop.environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    while not last.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    shutil.rmtree(str(workshop.folder / "checkpoint"), ignore_errors=True)
    output, errors = process.communicate(timeout=300)
    if process.returncode:
        assert "cannot write" in errors and "Traceback" not in errors
    else:
        assert checkpoint.read(str(last))["epoch"] == 8, output


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory, sample_data):
    """The last checkpoint of a run of one epoch, bytes."""
    workshop = Workshop(tmp_path_factory.mktemp("one"))
    (workshop.folder / "data").symlink_to(sample_data)
    succeeded(train(workshop, "--train_epochs", 1))
    return (workshop.folder / "checkpoint" / checkpoint.LAST).read_bytes()


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_last_epoch(workshop, one_epoch):
    """Files may not grow beyond 5 MB: the checkpoint has 12."""
    (workshop.folder / "checkpoint").mkdir()
    last = workshop.folder / "checkpoint" / checkpoint.LAST
    last.write_bytes(one_epoch)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000000, 5000000))

    sentence = failed(train(workshop, "--train_epochs", 2, "--resume", "auto", preexec_fn=limit))
    assert "cannot write" in sentence and "BMN_" in sentence and "File too large" in sentence
    assert last.read_bytes() == one_epoch
    assert not [name for name in os.listdir(str(last.parent)) if name.endswith(".tmp")]


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "options", "expected"), [
    (lambda whole: whole[:-1000], (), "truncated or damaged"),
    (lambda whole: whole, ("--training_lr", "0.01"), "--training_lr 0.001, but here it is 0.01")])
def test_what_cannot_be_resumed_is_refused(workshop, one_epoch, damage, options, expected):
    path = workshop.folder / "last.pth.tar"
    path.write_bytes(damage(one_epoch))
    assert expected in failed(train(workshop, "--train_epochs", 2, "--resume", path, *options))
    assert path.read_bytes() == damage(one_epoch)
