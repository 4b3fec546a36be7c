"""Two machines, as two network namespaces with a cable between them: what listens, and how a loss is told."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, SMALL

from bmn.machine.device import TORCH

COMMON = ("--device", "cpu") + SMALL + ("--num_sample", "2", "--num_workers", "0", "--batch_size", "12", "--opt_level",
                                       "O0", "--train_epochs", "100000", "--patience", "5")
PORT = 29999
pytestmark = [pytest.mark.slow, pytest.mark.skipif(TORCH < (2, 0), reason="make test-legacy tries several processes")]


class Machines:
    """Network namespaces a and b with the addresses 10.21.0.1 and 10.21.0.2, and a rank of a run in each."""

    def __init__(self, workshop):
        self.workshop, self.ranks, self.name = workshop, [], "bmn%d" % os.getpid()
        self.spaces = [self.name + "a", self.name + "b"]
        self.cables = ["v%da" % os.getpid(), "v%db" % os.getpid()]

    def set_up(self):
        """Returns whether this was possible."""
        if not shutil.which("ip") or not shutil.which("unshare"):
            return False
        steps = [["netns", "add", space] for space in self.spaces]
        steps.append(["link", "add", self.cables[0], "type", "veth", "peer", "name", self.cables[1]])
        for number, (space, cable) in enumerate(zip(self.spaces, self.cables), 1):
            steps += [["link", "set", cable, "netns", space],
                      ["-n", space, "addr", "add", "10.21.0.%d/24" % number, "dev", cable],
                      ["-n", space, "link", "set", cable, "up"], ["-n", space, "link", "set", "lo", "up"]]
        return all(subprocess.run(["ip", *step], capture_output=True, check=False).returncode == 0 for step in steps)

    def tear_down(self):
        for rank in self.ranks:
            rank.kill()
            rank.communicate()
        for space in self.spaces if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)

    def start(self):
        for rank, (space, cable) in enumerate(zip(self.spaces, self.cables)):
            inside = "hostname machine-%s && exec \"$@\"" % "ab"[rank]
            command = ["ip", "netns", "exec", space, "unshare", "--uts", "sh", "-c", inside, "sh", sys.executable,
                       os.path.join(ROOT, "main.py"), *COMMON]
            environment = self.workshop.environment(
                RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="10.21.0.1", MASTER_PORT=str(PORT),
                GLOO_SOCKET_IFNAME=cable)
            self.ranks.append(subprocess.Popen(command, cwd=str(self.workshop.folder), env=environment, text=True,
                                               stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        for line in self.ranks[0].stdout:
            if line.startswith("Epoch: 1,"):
                return
        pytest.fail("".join(rank.stderr.read() for rank in self.ranks))

    def listening(self, rank):
        """The ports on which anything listens on a machine; nothing but the run is there."""
        found = set()
        for table in ("tcp", "tcp6"):
            with open("/proc/%d/net/%s" % (self.ranks[rank].pid, table)) as handle:
                rows = [line.split() for line in handle][1:]
            found.update(int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A")
        return found

    def ended(self, *numbers):
        """{rank: its sentence}. Prints how long it took, which pytest -s shows; a busy machine may need longer."""
        began, said = time.monotonic(), {}
        for number in numbers:
            _, errors = self.ranks[number].communicate(timeout=600)
            assert self.ranks[number].returncode == 1 and errors.count("\n") == 1, errors
            said[number] = errors
        print("%.1f seconds" % (time.monotonic() - began), *said.values())
        return said


@pytest.fixture
def machines(workshop):
    pair = Machines(workshop)
    try:
        if not pair.set_up():
            pytest.skip("network namespaces need the superuser and iproute2")
        pair.start()
        yield pair
    finally:
        pair.tear_down()


def test_nothing_listens_but_the_master_port_and_the_backend(machines):
    first, second = machines.listening(0), machines.listening(1)
    assert PORT in first and len(first) == 2 and len(second) == 1, "gloo has one of its own for each rank"
    print(json.dumps({"a": sorted(first), "b": sorted(second)}))


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_rank_ends_the_other_in_seconds(machines, lost):
    machines.ranks[lost].kill()
    said = machines.ended(1 - lost)
    assert "rank %d on machine machine-%s ended before the run was done" % (lost, "ab"[lost]) in said[1 - lost]
    assert "rank %d on machine machine-%s stops as well" % (1 - lost, "ba"[lost]) in said[1 - lost]


@pytest.mark.parametrize("still", [0, 1])
def test_a_rank_that_stands_still_ends_the_other_within_patience(machines, still):
    machines.ranks[still].send_signal(signal.SIGSTOP)
    said = machines.ended(1 - still)
    assert "rank %d on machine machine-%s" % (still, "ab"[still]) in said[1 - still]
    assert "5 seconds (--patience)" in said[1 - still]


def test_a_cut_cable_ends_both_within_patience(machines):
    subprocess.run(["ip", "-n", machines.spaces[1], "link", "set", machines.cables[1], "down"], check=True)
    said = machines.ended(0, 1)
    assert "rank 1 on machine machine-b" in said[0] and "rank 0 on machine machine-a" in said[1]
