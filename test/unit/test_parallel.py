import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

from bmn import parallel
from bmn.errors import UserError


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_item_is_worked_on_once_and_its_error_is_returned(tmp_path, processes):
    def work(item):
        (tmp_path / ("%d.%d" % (item, os.getpid()))).touch()
        if item % 50 == 7:
            raise UserError("item %d" % item)
        return item

    outcomes = list(parallel.outcomes(work, list(range(120)), processes))
    flaws = [outcome for outcome in outcomes if isinstance(outcome, UserError)]
    assert sorted(map(str, flaws)) == ["item 107", "item 57", "item 7"]
    assert sorted(set(outcomes) - set(flaws)) == [item for item in range(120) if item % 50 != 7]
    done, workers = zip(*(path.name.split(".") for path in tmp_path.iterdir()))
    assert sorted(map(int, done)) == list(range(120)) and len(set(workers)) == processes


def test_few_items_need_no_process_of_their_own():
    seen = []
    assert list(parallel.outcomes(seen.append, [1, 2, 3])) == [None] * 3 and seen == [1, 2, 3]


@pytest.mark.parametrize("processes", [1, 2])
def test_any_other_error_ends_the_work_and_is_raised(processes):
    def work(item):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        list(parallel.outcomes(work, list(range(64)), processes))


def test_a_helper_that_dies_is_reported():
    with pytest.raises(UserError, match="died"):
        list(parallel.outcomes(lambda item: os._exit(9), list(range(64)), 2))


def test_closing_the_outcomes_ends_the_helpers(tmp_path):
    def work(item):
        time.sleep(0.01)
        (tmp_path / str(os.getpid())).touch()
        with open(str(tmp_path / "items"), "ab") as handle:
            handle.write(b".")

    outcomes = parallel.outcomes(work, list(range(1000)), 2)
    next(outcomes)
    outcomes.close()                    # waits for the items that are being worked on, and for no other
    assert (tmp_path / "items").stat().st_size < 100
    for path in set(tmp_path.iterdir()) - {tmp_path / "items"}:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)


def test_helpers_end_when_their_parent_is_killed(root):
    script = """
import sys, time
sys.path.insert(0, sys.argv[1])
from bmn import parallel

def work(item):
    time.sleep(0.05)
    print(".", end="", flush=True)

list(parallel.outcomes(work, list(range(400)), 2))
"""
    with subprocess.Popen([sys.executable, "-c", script, root], stdout=subprocess.PIPE) as process:
        process.stdout.read(20)
        process.kill()
        after = process.stdout.read()       # until every helper is gone
    assert len(after) < 100                 # they had ten seconds of work left


def test_signals_to_the_whole_group_are_the_parents_to_handle(tmp_path):
    """Ctrl-C, and what a scheduler sends: the helpers finish what they work on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)      # a background job begins with it ignored

    def work(item):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        return item

    try:
        assert sorted(parallel.outcomes(work, list(range(64)), 2)) == list(range(64))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_parent_that_ends_within_a_message_leaves_no_traceback(capfd):
    """The helper reads half a message, or finds nobody who wants its answer."""
    pool = parallel.Pool(lambda item: item, 1)
    pipe = pool._start()
    os.write(pipe.fileno(), b"\0\0\1\0half")
    pipe.close()
    pool.helpers[0].join(20)
    assert pool.helpers[0].exitcode == 0 and capfd.readouterr().err == ""


def test_an_answer_that_cannot_be_sent_is_an_error_here():
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        list(parallel.outcomes(lambda item: lambda: item, list(range(64)), 2))


def test_processes_are_limited_by_processors_and_work():
    assert parallel.limited(10 ** 20) == parallel.processors()
    assert parallel.limited(10 ** 20, 1) == parallel.limited(1) == parallel.limited(5, 0) == 1
