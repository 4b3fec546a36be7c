"""A folder has one owner at a time: a living process, on this machine or on another one."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from bmn import owner
from bmn.errors import UserError
from bmn.owner import Owner

HOLD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from bmn.owner import Owner
with Owner(sys.argv[2], "checkpoint_path") as one:
    if "child" not in sys.argv or not os.fork():        # the child says so itself: then it runs
        print("mine", os.getpid(), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def hold(root, tmp_path):
    """hold() -> a process that owns tmp_path, and the number of its child."""
    started = []

    def start(*words):
        process = subprocess.Popen([sys.executable, "-c", HOLD, root, str(tmp_path), *words], stdout=subprocess.PIPE,
                                   universal_newlines=True)
        started.append(process)
        word, child = process.stdout.readline().split()
        assert word == "mine"
        return process, int(child)
    yield start
    for process in started:
        process.kill()
        process.communicate()


def taken(folder):
    with Owner(str(folder), "checkpoint_path", pytest.fail):
        return json.loads((folder / owner.FILE).read_text())


def test_a_folder_that_the_owner_made_and_left_empty_is_removed(tmp_path):
    with Owner(str(tmp_path / "new"), "checkpoint_path"):
        assert os.listdir(str(tmp_path / "new")) == [owner.FILE]
    assert os.listdir(str(tmp_path)) == []
    with Owner(str(tmp_path / "new"), "checkpoint_path"):
        (tmp_path / "new" / "x").write_text("")
    (tmp_path / "old").mkdir()
    with Owner(str(tmp_path / "old"), "checkpoint_path"):
        pass
    assert sorted(os.listdir(str(tmp_path / "new"))) == [owner.FILE, "x"] and (tmp_path / "old").is_dir()


def test_the_second_is_told_who_the_first_is(tmp_path, hold):
    process, _ = hold()
    with pytest.raises(UserError, match=r"process %d on machine \S+ \(since .*\) owns --checkpoint_path" % process.pid):
        taken(tmp_path)
    process.terminate()
    process.wait()
    assert taken(tmp_path)["process"] == os.getpid()


def test_a_killed_owner_is_no_owner_although_its_helper_lives(tmp_path, hold):
    process, child = hold("child")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        os.kill(child, 0)
        assert taken(tmp_path)["process"] == os.getpid()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_folder_is_given_back(tmp_path):
    (tmp_path / "new").mkdir()
    assert taken(tmp_path / "new")["beats"] == 1
    assert (tmp_path / "new" / owner.FILE).read_bytes() == b""
    assert taken(tmp_path / "new")["beats"] == 1


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(owner, "BEAT", 0.1)
    monkeypatch.setattr(owner, "SILENT", 1.0)


@pytest.fixture(params=["another machine", "no locks", "no fcntl"])
def without_a_shared_lock(request, monkeypatch, tmp_path, quick):
    """Two owners whom no lock tells from each other: the disk's locks hold within a machine, or there are none."""
    if request.param == "no fcntl":
        monkeypatch.setattr(owner, "fcntl", None)
    else:
        def flock(*_):
            if request.param == "no locks":
                raise OSError(owner.errno.ENOLCK, "No locks available")
        monkeypatch.setattr(owner.fcntl, "flock", flock)
    kernels = iter("abcdefgh")
    monkeypatch.setattr(owner, "_kernel", lambda: next(kernels))


def test_an_owner_elsewhere_is_known_by_its_beats(tmp_path, without_a_shared_lock):
    lines = []
    with Owner(str(tmp_path), "checkpoint_path"), pytest.raises(UserError, match="owns --checkpoint_path"), \
            Owner(str(tmp_path), "checkpoint_path", lines.append):
        pass
    assert "looking for 1 seconds whether that is still alive" in lines[0]


def test_a_dead_owner_elsewhere_is_followed(tmp_path, without_a_shared_lock):
    dead = {"process": 5, "machine": "elsewhere", "kernel": "z", "since": "then", "key": "k", "beats": 7}
    (tmp_path / owner.FILE).write_text(json.dumps(dead))
    lines = []
    with Owner(str(tmp_path), "checkpoint_path", lines.append) as one:
        one.check()
    assert lines == ["%s belonged to process 5 on machine elsewhere (since then): looking for 1 seconds whether that "
                     "is still alive" % tmp_path]


def test_an_owner_that_was_followed_meanwhile_writes_nothing(tmp_path, quick):
    with Owner(str(tmp_path), "checkpoint_path") as one:
        one.check()
        other = {"process": 5, "machine": "elsewhere", "since": "now", "key": "k"}
        (tmp_path / owner.FILE).write_text(json.dumps(other))
        time.sleep(5 * owner.BEAT)
        assert json.loads((tmp_path / owner.FILE).read_text()) == other         # its beats have stopped
        with pytest.raises(UserError, match=r"process 5 on machine elsewhere .* has taken over --checkpoint_path"):
            one.check()
    assert json.loads((tmp_path / owner.FILE).read_text()) == other


def test_a_folder_that_was_removed_is_taken_again(tmp_path):
    with Owner(str(tmp_path / "x"), "checkpoint_path") as one:
        os.remove(str(tmp_path / "x" / owner.FILE))
        os.rmdir(str(tmp_path / "x"))
        one.check()
        assert json.loads((tmp_path / "x" / owner.FILE).read_text())["process"] == os.getpid()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/x.*give a --checkpoint_path"):
        taken(tmp_path / "file" / "x")
