"""Several processes on CPUs: every launcher works, any number gives the same figures, and no failure hangs."""
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL, Workshop, free_port

from bmn.machine.device import TORCH

MAIN = os.path.join(ROOT, "main.py")
DIGESTS = os.path.join(ROOT, "test", "e2e", "main_with_digests.py")
# These steps are too small to move a weight, so the results must not depend on how the batches are split.
STILL = ("--finetune", "1", "--pth_path", "trained.pth.tar", "--training_lr", "1e-30", "--train_epochs", "1")
COMMON = ("--device", "cpu") + SMALL + ("--num_workers", "0", "--batch_size", "12", "--opt_level", "O0")
TORCHRUN = "torch.distributed.run"
OLD_LAUNCHER = "torch.distributed.launch"

pytestmark = pytest.mark.skipif(TORCH < (2, 0), reason="make test-legacy starts several processes on PyTorch 1.5, 1.8")


def launcher(module, processes, *more):
    return [sys.executable, "-m", module, "--nproc_per_node", str(processes), "--master_port", free_port()] + list(more)


def start(workshop, command, **environment):
    """Start a command line in the workshop's folder."""
    return subprocess.Popen([str(word) for word in command], cwd=str(workshop.folder), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=workshop.environment(**environment))


def finished(*processes):
    """What each printed; all must have succeeded."""
    outputs = [process.communicate(timeout=600) for process in processes]
    for process, (output, errors) in zip(processes, outputs):
        assert process.returncode == 0, output + errors
    return [output for output, _ in outputs]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, sample_data):
    """The results of one process: a folder with trained.pth.tar and what --mode full gave with it."""
    workshop = Workshop(tmp_path_factory.mktemp("one"))
    (workshop.folder / "data").symlink_to(sample_data)
    finished(start(workshop, [sys.executable, MAIN, *COMMON, "--mode", "train", "--train_epochs", "2"]))
    os.rename(str(workshop.folder / "checkpoint" / "BMN_best.pth.tar"), str(workshop.folder / "trained.pth.tar"))
    finished(start(workshop, [sys.executable, DIGESTS, *COMMON, *STILL, "--mode", "full"]))
    return workshop


@pytest.fixture
def workshop(workshop, trained):
    (workshop.folder / "trained.pth.tar").symlink_to(trained.folder / "trained.pth.tar")
    return workshop


def validation_loss(workshop):
    return [json.loads(line)["validation"] for line in workshop.text("checkpoint/metrics.jsonl").splitlines()]


def digests(workshop, processes):
    """The one digest that all ranks wrote for each epoch."""
    found = {workshop.text("digests.%d" % rank) for rank in range(processes)}
    assert len(found) == 1, "the weights of the ranks have drifted apart"
    return found.pop()


def same_as_one_process(workshop, trained, processes):
    assert validation_loss(workshop) == validation_loss(trained)
    assert digests(workshop, processes) == digests(trained, 1)
    for name in ["result_proposal.json"] + [os.path.join("BMN_results", name) for name in
                                            os.listdir(str(trained.folder / "output" / "BMN_results"))]:
        assert (workshop.folder / "output" / name).read_bytes() == (trained.folder / "output" / name).read_bytes()


def only_rank_0_prints(output):
    for line in (r"^Epoch: 0,FPS: ", r"^BMN training loss\(epoch 0", r"^BMN test loss\(epoch 0", r"^device: cpu, "):
        assert len(re.findall(line, output, re.MULTILINE)) == 1, line


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_torchrun_gives_what_one_process_gives(workshop, trained, processes):
    output, = finished(start(workshop, launcher(TORCHRUN, processes) + [DIGESTS, *COMMON, *STILL, "--mode", "full"]))
    only_rank_0_prints(output)
    assert "device: cpu, %d processes over gloo" % processes in output and output.count("AR@100") == 1
    same_as_one_process(workshop, trained, processes)


@pytest.mark.slow
def test_two_machines_give_what_one_process_gives(workshop, trained):
    """Two launchers with node ranks of their own, on one address."""
    port = free_port()
    nodes = [start(workshop, [sys.executable, "-m", TORCHRUN, "--nnodes", 2, "--node_rank", rank, "--nproc_per_node", 1,
                              "--master_addr", "127.0.0.1", "--master_port", port, DIGESTS, *COMMON, *STILL,
                              "--mode", "full"]) for rank in (0, 1)]
    first, second = finished(*nodes)
    only_rank_0_prints(first)
    assert second.strip() == ""
    same_as_one_process(workshop, trained, 2)


@pytest.mark.slow
def test_the_old_launcher_trains(workshop):
    """torch.distributed.launch with the options of the old port; real steps, so that weights could drift apart."""
    output, = finished(start(workshop, launcher(OLD_LAUNCHER, 2) + [
        DIGESTS, *COMMON, "--mode", "train", "--train_epochs", "2", "--is_distributed", "1", "--world_size", "2",
        "--DeviceID", "0,1"]))
    only_rank_0_prints(output)
    first, second = digests(workshop, 2).split()
    assert first != second, "it has learnt something"


@pytest.mark.slow
def test_processes_without_a_launcher_give_what_one_gives(workshop, trained):
    """Each process is told its number, as by the old port's own script."""
    port = free_port()
    ranks = [start(workshop, [sys.executable, MAIN, *COMMON, "--mode", "inference", "--pth_path", "trained.pth.tar",
                              "--is_distributed", "1", "--world_size", "2", "--local_rank", rank], MASTER_PORT=port)
             for rank in (0, 1)]
    assert finished(*ranks)[1] == ""
    result = (workshop.folder / "output" / "result_proposal.json").read_bytes()
    assert result == (trained.folder / "output" / "result_proposal.json").read_bytes()


def test_a_batch_that_cannot_be_split_evenly_is_refused(workshop):
    ranks = [start(workshop, [sys.executable, MAIN, *COMMON, "--batch_size", "9"], RANK=str(rank), WORLD_SIZE="2",
                   MASTER_PORT=port) for port in [free_port()] for rank in (0, 1)]
    for rank in ranks:
        _, errors = rank.communicate(timeout=600)
        assert rank.returncode == 1 and "Traceback" not in errors
        assert "--batch_size 9 cannot be divided evenly among 2 processes" in errors or "ended before" in errors


# ---- a rank dies in the middle of an epoch -------------------------------------------------------------------------

LONG = ("--mode", "train", "--train_epochs", "100000", "--patience", "3600")    # nothing but its end tells of a rank


def ranks_below(launcher_process):
    """{rank: process id} of the programs that a launcher has started."""
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/stat" % entry) as handle:
                parent = int(handle.read().rpartition(")")[2].split()[1])
            with open("/proc/%s/environ" % entry, "rb") as handle:
                rank = re.search(rb"(?:^|\0)RANK=(\d+)", handle.read())
        except OSError:         # it has ended in the meantime
            continue
        if parent == launcher_process.pid and rank:
            found[int(rank.group(1))] = int(entry)
    return found


def after_an_epoch(process):
    """Read its output until the line that follows the first checkpoint."""
    for line in process.stdout:
        if line.startswith("Epoch: 1,"):
            return
    pytest.fail(process.stderr.read())


def nothing_is_corrupted(workshop):
    """The files are whole, and the run goes on from them."""
    names = sorted(name for name in os.listdir(str(workshop.folder / "checkpoint")) if not name.startswith("."))
    assert names == ["BMN_best.pth.tar", "BMN_checkpoint.pth.tar", "metrics.jsonl", "opts.json"]
    done = len(workshop.text("checkpoint/metrics.jsonl").splitlines())
    output, = finished(start(workshop, [sys.executable, MAIN, *COMMON, "--mode", "train", "--resume", "auto",
                                        "--train_epochs", done + 1]))
    assert "Epoch: %d,FPS" % done in output


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_rank_ends_the_others(workshop, lost):
    """There is no launcher: only the ranks themselves can notice."""
    port = free_port()
    ranks = [start(workshop, [sys.executable, MAIN, *COMMON, *LONG, "--num_workers", "1"], RANK=str(rank),
                   LOCAL_RANK=str(rank), WORLD_SIZE="3", MASTER_PORT=port) for rank in range(3)]
    after_an_epoch(ranks[0])
    os.kill(ranks[lost].pid, signal.SIGKILL)
    for rank, process in enumerate(ranks):
        _, errors = process.communicate(timeout=600)
        if rank == lost:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 1 and "error: rank %d on machine " % lost in errors
            assert "ended before the run was done" in errors and "Traceback" not in errors
    nothing_is_corrupted(workshop)


@pytest.mark.slow
def test_a_run_that_is_started_again_at_once_on_its_port_is_not_told_of_the_old_ones_end(workshop):
    port = free_port()

    def ranks(*more):
        return [start(workshop, [sys.executable, MAIN, *COMMON, *LONG, *more], RANK=str(rank), LOCAL_RANK=str(rank),
                      WORLD_SIZE="2", MASTER_PORT=port) for rank in (0, 1)]
    first = ranks()
    after_an_epoch(first[0])
    for process in first:
        process.kill()
    for process in first:
        process.communicate(timeout=600)
    done = len(workshop.text("checkpoint/metrics.jsonl").splitlines())
    output, _ = finished(*ranks("--resume", "auto", "--train_epochs", done + 5))
    assert "Epoch: %d,FPS" % (done + 4) in output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_rank_0_says_for_whom_it_waits_and_a_signal_ends_it_at_once(workshop, number):
    process = start(workshop, [sys.executable, MAIN, *COMMON], RANK="0", WORLD_SIZE="3", MASTER_PORT=free_port())
    assert process.stdout.readline().startswith("rank 0 waits at 127.0.0.1:%s for the 2 of 3 processes that have not "
                                                "come (ranks 1, 2)" % port_of(process))
    process.send_signal(number)
    process.communicate(timeout=120)            # it would wait for ten minutes
    assert process.returncode == -number


def port_of(process):
    with open("/proc/%d/environ" % process.pid) as handle:
        return re.search(r"MASTER_PORT=(\d+)", handle.read()).group(1)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_rank_ends_torchrun(workshop, lost):
    process = start(workshop, launcher(TORCHRUN, 2) + [MAIN, *COMMON, *LONG])
    after_an_epoch(process)
    os.kill(ranks_below(process)[lost], signal.SIGKILL)
    _, errors = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "error: rank %d on machine " % lost in errors or "Signal %d" % signal.SIGKILL in errors
    nothing_is_corrupted(workshop)
