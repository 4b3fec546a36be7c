"""What is printed where nobody can read it: real processes with a full disk, a reader who has left, closed streams."""
import os
import subprocess
import sys
import weakref

import pytest
from conftest import ROOT

from bmn.output import NOBODY_READS, Output

PROGRAM = """
import sys
from bmn.errors import UserError, command_line, run_as_program

def work(mistake):
    for number in range(5):
        print("line", number, flush=number %% 2 == 0)
        print("remark", number, file=sys.stderr)
    if mistake:
        raise UserError("the file is missing")
    open("done", "w").close()

run_as_program(work, command_line(lambda: %d))
"""
FULL = "/dev/full"      # each write to it fails as on a full disk


def run(folder, mistake=0, **streams):
    """(exit status, what went to stderr, whether the work was done) of the program with these streams."""
    streams = dict({"stderr": subprocess.PIPE}, **streams)
    done = subprocess.run([sys.executable, "-c", PROGRAM % mistake], cwd=str(folder), text=True,
                          env=dict(os.environ, PYTHONPATH=ROOT), check=False, **streams)
    assert "Traceback" not in (done.stderr or "")
    return done.returncode, done.stderr, os.path.exists(str(folder / "done"))


@pytest.fixture
def full():
    if not os.path.exists(FULL):
        pytest.skip("no %s here" % FULL)
    with open(FULL, "w") as handle:
        yield handle


def test_the_work_goes_on_where_the_disk_is_full(tmp_path, full):
    status, told, done = run(tmp_path, stdout=full)
    assert (status, done) == (1, True)
    assert told.count("what is printed is lost (No space left on device), the work goes on") == 1 and "remark 4" in told
    status, _, done = run(tmp_path, stdout=full, stderr=full)
    assert (status, done) == (1, True)


def test_remarks_that_are_lost_alone_are_no_failure(tmp_path, full):
    status, _, done = run(tmp_path, stdout=subprocess.PIPE, stderr=full)
    assert (status, done) == (0, True)


def test_a_mistake_is_still_told(tmp_path, full):
    status, told, done = run(tmp_path, 1, stdout=full)
    assert (status, done) == (1, False) and told.endswith("error: the file is missing\n")


def test_a_reader_who_has_left_is_no_failure_of_the_work(tmp_path):
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        status, told, done = run(tmp_path, stdout=theirs)
    finally:
        os.close(theirs)
    assert (status, done) == (128 + 13, True) and "lost" not in told


def test_the_failure_holds_nothing_of_the_loop_that_printed():
    class Worker:
        pass

    def loop(output):
        worker = Worker()
        output.write("line\n")
        output.flush()
        return weakref.ref(worker)
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as stream:
        output = Output(stream)
        assert loop(output)() is None and output.status == NOBODY_READS
        loop(output)


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_closed_streams_are_no_failure(tmp_path, closed):
    done = subprocess.run(["/bin/sh", "-c", 'exec "$0" -c "$1" ' + closed, sys.executable, PROGRAM % 0], check=False,
                          cwd=str(tmp_path), env=dict(os.environ, PYTHONPATH=ROOT))
    assert done.returncode == 0 and os.path.exists(str(tmp_path / "done"))
