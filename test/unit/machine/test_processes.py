"""How processes find each other and end together: real processes, forked from the test."""
import contextlib
import multiprocessing
import os
import platform
import signal
import socket
import sys
import time

import pytest
import torch

from bmn.errors import UserError, run_as_program
from bmn.machine import device, peers, processes
from bmn.machine.processes import Member
from bmn.options import with_defaults

OPTIONS = {"is_distributed": 0, "world_size": 1, "local_rank": 0}
PATIENCE = 5.0          # seconds; with less, a busy machine itself could stand still for too long
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")      # gloo warns where a machine cannot look up its own name


def test_a_process_without_a_launcher_is_alone():
    member = Member(OPTIONS)
    assert (member.rank, member.local_rank, member.world_size) == (0, 0, 1)


def test_the_environment_of_torchrun_is_read(monkeypatch):
    for name, value in (("RANK", "11"), ("LOCAL_RANK", "3"), ("WORLD_SIZE", "16")):
        monkeypatch.setenv(name, value)
    member = Member(OPTIONS)
    assert (member.rank, member.local_rank, member.world_size) == (11, 3, 16)
    assert Member(dict(OPTIONS, is_distributed=1, world_size=16, local_rank=3)).rank == 11      # under the old launcher
    with pytest.raises(UserError, match=r"--world_size 8, but the launcher started 16 processes \(WORLD_SIZE\)"):
        Member(dict(OPTIONS, world_size=8))
    monkeypatch.setenv("RANK", "16")
    with pytest.raises(UserError, match="this is rank 16 of 16 processes"):
        Member(OPTIONS)
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(UserError, match="RANK=x in the environment is not a number"):
        Member(OPTIONS)


def test_the_old_options_are_read():
    member = Member({"is_distributed": 1, "world_size": 8, "local_rank": 3})
    assert (member.rank, member.local_rank, member.world_size) == (3, 3, 8)
    with pytest.raises(UserError, match="this is rank 8 of 8 processes"):
        Member({"is_distributed": 1, "world_size": 8, "local_rank": 8})
    with pytest.raises(UserError, match="--world_size 8 without --is_distributed 1"):
        Member({"is_distributed": 0, "world_size": 8, "local_rank": 0})


def test_waiting_for_the_others_ends_with_an_error(monkeypatch):
    for module in (processes, peers):
        monkeypatch.setattr(module, "JOIN_WITHIN", processes.datetime.timedelta(seconds=1))
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"rank 1 of 2 could not join the others at 127.0.0.1:\d+ \(MASTER_ADDR"):
        device.setup(with_defaults({"device": "cpu"}))


# ---- several processes --------------------------------------------------------------------------------------------

def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Rank:
    """One of several processes that run ``task(runtime)``; ``text`` is what it printed on stderr."""

    def __init__(self, task, rank, world_size, port, path, opt, late=False):
        self.path = path
        self.process = multiprocessing.get_context("fork").Process(
            target=self._run, args=(task, rank, world_size, port, opt, late))
        self.process.start()

    def _run(self, task, rank, world_size, port, opt, late):
        if late:
            time.sleep(1)
        handle = os.open(self.path, os.O_CREAT | os.O_WRONLY)
        os.dup2(handle, 2)
        sys.stderr = os.fdopen(2, "w")
        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_PORT=str(port))

        def main():
            with device.setup(with_defaults(dict({"device": "cpu"}, **opt))) as runtime:
                open(self.path + ".ready", "w").close()
                task(runtime)
            time.sleep(0.3)                     # a process may have more to do than its part in the run
        run_as_program(main)

    def ended(self, limit=600):
        """Its exit status. Only a process that hangs reaches the limit."""
        until = time.time() + limit             # not join(): it would wait for the helpers of a killed process as well
        while self.process.exitcode is None and time.time() < until:
            time.sleep(0.05)
        assert self.process.exitcode is not None, "still running"
        with open(self.path) as handle:
            self.text = handle.read()
        return self.process.exitcode


def children(pid):
    """The processes that ``pid`` has started: its guard, its data workers."""
    with contextlib.suppress(OSError), open("/proc/%d/task/%d/children" % (pid, pid)) as handle:
        return list(map(int, handle.read().split()))
    return []


@pytest.fixture
def launch(tmp_path):
    """launch(task, world_size, opts) -> the processes; none is left behind."""
    started = []

    def start(task, world_size, opts=None, port=None, late=None):
        port = port or free_port()
        ranks = [Rank(task, rank, world_size, port, str(tmp_path / ("rank%d" % rank)), opts[rank] if opts else {},
                      rank == late) for rank in range(world_size)]
        started.extend(ranks)
        return ranks
    yield start
    for rank in started:
        for pid in [*children(rank.process.pid), rank.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while rank.process.is_alive():          # not join(), as above
            time.sleep(0.01)


def exchange(runtime):
    rank = runtime.rank
    assert runtime.gather({"text": "x" * 1000 * rank}) == [{"text": "x" * 1000 * other} for other in range(3)]
    assert runtime.broadcast("from %d" % rank) == "from 0"
    mine = torch.full((2,), float(rank + 1))
    assert runtime.all_reduce_sum(mine).tolist() == [6, 6] and mine.tolist() == [rank + 1, rank + 1]
    torch.manual_seed(rank)
    weights = runtime.wrap(torch.nn.Linear(2, 1)).module.weight.detach()
    assert all(torch.equal(weights, other) for other in runtime.gather(weights))


def test_three_processes_exchange_and_leave(launch):
    assert [(rank.ended(), rank.text) for rank in launch(exchange, 3)] == [(0, "")] * 3


def average_again(runtime):
    """The same gradients, in the first step of a process and in later ones."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width + 7) for width in range(30, 100, 7)))
    wrapper = runtime.wrap(model, lambda network: network(torch.zeros(1, 30)).sum())
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    torch.manual_seed(1 + runtime.rank)
    features, found = torch.randn(8, 30), []
    for _ in range(3):
        model.zero_grad()
        wrapper(features).pow(2).sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for later in found[1:] for one, other in zip(found[0], later))


@pytest.mark.skipif(device.TORCH < (2, 0), reason="old PyTorch computes no gradients in forked processes")
def test_gradients_are_added_in_the_same_order_in_every_step(launch):
    """To the last digit, so that it makes no difference with which step a process has begun."""
    assert [(rank.ended(), rank.text) for rank in launch(average_again, 3)] == [(0, "")] * 3


def come_late_in_turn(runtime):
    for late in range(3):
        name = "%s.%d" % (os.environ["NOTES"], late)
        if runtime.rank == late:
            time.sleep(0.3)
            open(name, "w").close()
        runtime.barrier()
        assert os.path.exists(name)


def test_a_barrier_waits_for_the_last(launch, monkeypatch, tmp_path):
    monkeypatch.setenv("NOTES", str(tmp_path / "late"))
    assert [(rank.ended(), rank.text) for rank in launch(come_late_in_turn, 3)] == [(0, "")] * 3


def gather_late_in_turn(runtime):
    """HCCL and NCCL give up on a collective that starts minutes apart, so none begins before the last is there."""
    collective = runtime._all_gather
    for late in range(3):
        name = "%s.%d" % (os.environ["NOTES"], late)
        if runtime.rank == late:
            time.sleep(0.3)
            open(name, "w").close()
        runtime._all_gather = lambda tensor, name=name: (
            collective(tensor) if os.path.exists(name) else sys.exit("early"))
        assert runtime.gather(runtime.rank) == [0, 1, 2]


def test_no_exchange_begins_before_the_last_is_there(launch, monkeypatch, tmp_path):
    monkeypatch.setenv("NOTES", str(tmp_path / "late"))
    assert [(rank.ended(), rank.text) for rank in launch(gather_late_in_turn, 3)] == [(0, "")] * 3


def be_guarded_again_and_again(runtime):
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        peers._Guard(runtime.rank).dismiss()
    assert len(os.listdir("/dev/fd")) == before


def test_a_guard_leaves_no_file_open(launch):
    rank, = launch(be_guarded_again_and_again, 1)
    assert (rank.ended(), rank.text) == (0, "")


@pytest.mark.parametrize("late", [0, 2])
def test_leaving_in_any_order_is_no_failure(launch, late):
    def task(runtime):
        if runtime.rank == late:
            time.sleep(1)
    assert [(rank.ended(), rank.text) for rank in launch(task, 3)] == [(0, "")] * 3


def wait_in_collective(runtime):
    runtime.barrier()
    if runtime.rank != 1:
        runtime.gather("never complete")
    time.sleep(3600)


def wait_in_barrier(runtime):
    if runtime.rank != 1:
        runtime.barrier()
    time.sleep(3600)


def wait_with_worker(runtime):
    """A forked helper, such as data loaders have, must not keep the connection of its dead parent open."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,), daemon=True)
    child.start()
    with open("%s.%d" % (os.environ["NOTES"], runtime.rank), "w") as handle:
        handle.write(str(child.pid))
    time.sleep(3600)


def all_ready(ranks):
    while not all(os.path.exists(rank.path + ".ready") for rank in ranks):
        assert all(rank.process.exitcode is None for rank in ranks)
        time.sleep(0.05)


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("task", [wait_in_collective, wait_in_barrier, wait_with_worker])
def test_a_killed_process_ends_the_others(launch, task, lost, monkeypatch, tmp_path):
    monkeypatch.setenv("NOTES", str(tmp_path / "child"))
    ranks = launch(task, 3, [{"patience": 3600.0}] * 3)      # so that nothing but its end can tell
    all_ready(ranks)
    if task is wait_with_worker:
        while not all((tmp_path / ("child.%d" % number)).exists() for number in range(3)):
            time.sleep(0.05)
    orphans = children(ranks[lost].process.pid)[1:]         # the first is the guard, which tells the others
    try:
        os.kill(ranks[lost].process.pid, signal.SIGKILL)
        assert ranks[lost].ended() == -signal.SIGKILL
        for number in {0, 1, 2} - {lost}:
            assert ranks[number].ended() == 1
            text = ranks[number].text
            assert "error: rank %d" % lost in text and "ended before the run was done" in text
            assert text.count("\n") == 1, text
            if task is wait_with_worker:
                with open(str(tmp_path / ("child.%d" % number))) as handle:
                    assert is_gone(int(handle.read())), "its helper is still there"
    finally:
        for pid in orphans:             # unlike a data worker it does not look for its parent
            os.kill(pid, signal.SIGKILL)


def is_gone(process):
    until = time.time() + 300                   # of the 3600 seconds that it would live
    while time.time() < until:
        try:
            with open("/proc/%d/stat" % process) as handle:
                if handle.read().rpartition(")")[2].split()[0] == "Z":      # ended; nobody has asked for its status
                    return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("still", [0, 1])
def test_a_process_that_stands_still_ends_the_others(launch, still):
    """It is stopped, as by a machine that freezes. The others name it and its machine."""
    ranks = launch(wait_in_collective, 3, [{"patience": PATIENCE}] * 3)
    all_ready(ranks)
    os.kill(ranks[still].process.pid, signal.SIGSTOP)
    try:
        for number in {0, 1, 2} - {still}:
            assert ranks[number].ended() == 1
            assert ("error: rank %d on machine %s " % (still, platform.node())) in ranks[number].text
            assert "%g seconds (--patience)" % PATIENCE in ranks[number].text and ranks[number].text.count("\n") == 1
    finally:
        os.kill(ranks[still].process.pid, signal.SIGKILL)


def read_a_frozen_disk(runtime):
    if runtime.rank == 1:
        with runtime.alone():
            time.sleep(600)
    runtime.barrier()


def test_a_process_that_waits_for_its_disk_stands_still(launch):
    for rank in launch(read_a_frozen_disk, 2, [{"patience": PATIENCE}] * 2):
        assert rank.ended() == 1 and "error: rank 1 on machine" in rank.text and "stands still" in rank.text


def be_busy():
    """For longer than --patience, a third of the time at work."""
    until = time.time() + 1.6 * PATIENCE
    while time.time() < until:
        sum(range(1000000))
        time.sleep(0.05)


def work_long(runtime):
    """Longer than --patience, in a region that waits for nobody, and then for the others."""
    with runtime.alone():
        if runtime.rank == 1:
            be_busy()
    runtime.barrier()


def wait_for_a_worker(runtime):
    """The same, while a data worker does the work: it may read from a slow disk."""
    with runtime.alone():
        if runtime.rank == 1:
            worker = multiprocessing.get_context("fork").Process(target=be_busy, daemon=True)
            worker.start()
            worker.join()
    runtime.barrier()


@pytest.mark.parametrize("task", [work_long, wait_for_a_worker])
def test_a_process_that_works_does_not_stand_still(launch, task):
    assert [(rank.ended(), rank.text) for rank in launch(task, 2, [{"patience": PATIENCE}] * 2)] == [(0, "")] * 2


def do_nothing(runtime):
    runtime.barrier()
    time.sleep(1)


def test_a_run_that_was_stopped_as_a_whole_goes_on(launch):
    """As by Ctrl-Z, for longer than --patience."""
    ranks = launch(do_nothing, 2, [{"patience": PATIENCE}] * 2)
    all_ready(ranks)
    for number, pause in ((signal.SIGSTOP, 2.5 * PATIENCE), (signal.SIGCONT, 0)):
        for rank in ranks:
            os.kill(rank.process.pid, number)
        time.sleep(pause)           # the time itself is what is tried
    assert [(rank.ended(), rank.text) for rank in ranks] == [(0, "")] * 2


def fail_before_joining(wanted):
    if os.environ["RANK"] == "1":
        raise UserError("rank 1 has no such device")
    return "cpu", ""


def test_the_others_do_not_wait_for_one_that_fails_before_it_joins(launch, monkeypatch):
    monkeypatch.setattr(device, "choose", fail_before_joining)
    ranks = launch(exchange, 2)
    assert [rank.ended() for rank in ranks] == [1, 1]
    assert ranks[1].text == "error: rank 1 has no such device\n"
    assert "error: rank 1 on machine %s ended before the run was done" % platform.node() in ranks[0].text


def test_nothing_listens_but_the_master_port_and_the_backend(launch, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTES", str(tmp_path / "ports"))
    ranks = launch(note_ports, 2)
    assert [(rank.ended(), rank.text) for rank in ranks] == [(0, "")] * 2
    found = [sorted(map(int, (tmp_path / ("ports.%d" % rank)).read_text().split())) for rank in range(2)]
    master = int((tmp_path / "ports.master").read_text())
    assert master in found[0] and len(found[0]) <= 2 and len(found[1]) <= 1, found      # gloo: one for each rank


def note_ports(runtime):
    """The ports on which this process listens: sockets of /proc/net that are among its open files."""
    runtime.barrier()
    mine = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            mine.add(os.readlink("/proc/self/fd/" + number))
    ports = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        if os.path.exists(table):
            with open(table) as handle:
                rows = [line.split() for line in handle][1:]
            ports.update(int(row[1].rpartition(":")[2], 16) for row in rows
                         if row[3] == "0A" and "socket:[%s]" % row[9] in mine)
    with open("%s.%d" % (os.environ["NOTES"], runtime.rank), "w") as handle:
        handle.write(" ".join(map(str, ports)))
    if runtime.is_main:
        with open(os.environ["NOTES"] + ".master", "w") as handle:
            handle.write(os.environ["MASTER_PORT"])
    runtime.barrier()


def meet_anew(runtime):
    """What a run does through the store. Rank 0 comes last, so that rank 1 finds what an earlier start has left."""
    name = os.path.join(os.environ["NOTES"], os.environ["TORCHELASTIC_RESTART_COUNT"])
    assert runtime.asked_to_stop() == ""
    if runtime.is_main:
        open(name, "w").close()
    runtime.barrier()
    assert os.path.exists(name), "the barrier did not wait"
    assert runtime.agreed(name if runtime.is_main else None) == name
    assert runtime.gather(runtime.rank) == [0, 1]
    if runtime.rank == 1:
        runtime.ask_to_stop("SIGTERM")
    runtime.barrier()
    if runtime.is_main:
        assert runtime.asked_to_stop() == "SIGTERM"


@pytest.mark.skipif(device.TORCH < (1, 9), reason="this PyTorch has no launcher that starts a run again")
def test_a_run_that_a_launcher_starts_again_does_not_read_what_the_first_start_left(launch, monkeypatch, tmp_path):
    """The launcher holds the store, and it outlives the processes: counts of barriers, decisions, ports of gloo."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, 2, True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("NOTES", str(tmp_path))
    for start in range(3):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(start))
        ranks = launch(meet_anew, 2, port=store.port, late=0)
        assert [(rank.ended(), rank.text) for rank in ranks] == [(0, "")] * 2


def fail_on_2(runtime):
    runtime.barrier()
    if runtime.rank == 2:
        raise UserError("this alone is wrong")
    runtime.gather(1)


def test_only_the_failed_process_reports_the_error(launch):
    ranks = launch(fail_on_2, 3)
    assert [rank.ended() for rank in ranks] == [1, 1, 1]
    assert ranks[2].text == "error: this alone is wrong\n"
    assert "rank 2 on machine" in ranks[0].text and "rank 2 on machine" in ranks[1].text
    assert "Traceback" not in ranks[0].text + ranks[1].text


def stop_alone(runtime):
    """A signal to one process, while nothing is there yet to be saved: before the training, or after it."""
    runtime.barrier()
    if runtime.rank == int(os.environ["NOTES"]):
        os.kill(os.getpid(), signal.SIGTERM)
    runtime.gather(1)


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_process_that_a_signal_ends_alone_ends_the_others(launch, monkeypatch, stopped):
    monkeypatch.setenv("NOTES", str(stopped))
    ranks = launch(stop_alone, 3, [{"patience": 3600.0}] * 3)
    assert ranks[stopped].ended() == 143 and ranks[stopped].text == "ended by SIGTERM\n"
    for number in {0, 1, 2} - {stopped}:
        assert ranks[number].ended() == 1 and "error: rank %d on machine" % stopped in ranks[number].text


def test_all_must_choose_the_same_device(launch, monkeypatch):
    monkeypatch.setattr(device, "choose", lambda wanted: (wanted, ""))
    monkeypatch.setattr(device, "card", lambda *_: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda name: None)
    ranks = launch(exchange, 2, [{"device": "cpu"}, {"device": "cuda"}])
    assert [rank.ended() for rank in ranks] == [1, 1]
    assert "the processes chose different devices (rank 0 cpu, rank 1 cuda)" in ranks[0].text + ranks[1].text
