import os
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

    outcomes = parallel.outcomes(work, list(range(1000)), 2)
    next(outcomes)
    began = time.time()
    outcomes.close()
    assert time.time() - began < 2      # they had five seconds of work left
    for path in tmp_path.iterdir():
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
