"""Pauses: all ranks stop after the same steps, soon after a signal, and rarely otherwise."""
import os
import random
import signal

import pytest

from bmn.errors import Stopped
from bmn.machine import pauses
from bmn.machine.pauses import Pause, Pauses


class Clock:
    """The time of a test; nothing waits."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(pauses.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class Rank:
    """What pauses need of device.Runtime. All ranks of a run share ``board``, as the ranks of a run share the store."""

    def __init__(self, number=0, board=None):
        self.is_main, self.number, self.board = number == 0, number, {} if board is None else board
        self.asked, self.met = [], 0

    def agreed(self, decision):
        if self.is_main:
            self.board.setdefault("decisions", []).append(decision)
        self.met += 1
        return self.board["decisions"][self.met - 1]

    def ask_to_stop(self, why):
        self.asked.append(why)
        self.board["stop"] = why

    def asked_to_stop(self):
        return self.board.get("stop", "")


@pytest.mark.parametrize("case", range(50))
def test_all_ranks_pause_after_the_same_steps(clock, case):
    """Steps of any length, a signal to any rank at any step: every rank is told the same, and stops soon after it."""
    draw = random.Random(case)
    board = {}
    ranks = [Rank(number, board) for number in range(draw.choice([1, 2, 3]))]
    running = [Pauses(rank, log_seconds=30, save_every=draw.choice([0, 1])) for rank in ranks]
    first, pace, hit = draw.choice([0, 7]), draw.choice([0.001, 0.04, 0.3, 5]), draw.randrange(1, 200)
    for one in running:
        one.begin(first)
    for done in range(first + 1, first + 1000):
        clock.now += pace * draw.uniform(0.8, 1.25)
        if done == first + hit:
            draw.choice(running)._note(signal.SIGUSR1, None)
        found = {one.after(done) for one in running}        # rank 0 comes first, so that the others find its decision
        assert len(found) == 1
        pause, = found
        if pause and pause.stop:
            break
    assert pause.stop == "SIGUSR1"
    # The rank that got it asks at a meeting, and rank 0 may decide at the next one.
    assert first + hit <= done <= first + hit + 2 * pauses.AT_MOST
    assert sum(len(rank.asked) for rank in ranks) == 1


@pytest.mark.parametrize("pace,between", [(0.001, pauses.AT_MOST), (0.09, 5), (0.26, 1), (3.0, 1)])
def test_meetings_are_about_half_a_second_apart(clock, pace, between):
    rank = Rank()
    one, met = Pauses(rank, 1e9, 0), []
    for done in range(1, 200):
        clock.now += pace
        before = rank.met
        one.after(done)
        if rank.met > before:
            met.append(done)
    assert met[0] == 1 and {b - a for a, b in zip(met[1:], met[2:])} == {between}


def pauses_of(one, clock, pace, steps):
    """{seconds since the start: pause}."""
    found, began = {}, clock.now
    for done in range(1, steps + 1):
        clock.now += pace
        pause = one.after(done)
        if pause:
            found[clock.now - began] = pause
    return found


def test_reports_and_saves_come_as_often_as_they_were_asked_for(clock):
    found = pauses_of(Pauses(Rank(), log_seconds=10, save_every=0.5), clock, 1.0, 100)
    assert [at for at, pause in found.items() if pause.report] == list(range(10, 101, 10))
    assert [at for at, pause in found.items() if pause.save] == [30, 60, 90]
    assert all(not pause.stop for pause in found.values())
    never = pauses_of(Pauses(Rank(), log_seconds=1000, save_every=0), clock, 1.0, 100)
    assert never == {}


def test_what_the_caller_has_saved_counts(clock):
    one = Pauses(Rank(), log_seconds=1e9, save_every=0.5)
    clock.now += 20
    one.saved()
    found = pauses_of(one, clock, 1.0, 31)
    assert found == {30: Pause(False, True, "")}


@pytest.mark.parametrize("number", pauses.SIGNALS)
def test_signals_are_noted_inside_the_block_and_left_alone_outside(number):
    seen = []
    before = signal.signal(number, lambda *_: seen.append(1))
    try:
        rank = Rank()
        with Pauses(rank, 1e9, 0) as one:
            assert one.after(1) is None
            os.kill(os.getpid(), number)
            found = [one.after(done) for done in range(2, 3 + pauses.AT_MOST)]
            assert Pause(False, False, signal.Signals(number).name) in found and not seen
        os.kill(os.getpid(), number)
        assert seen == [1]
        with pytest.raises(Stopped), Pauses(rank, 1e9, 0):
            raise Stopped(143)
        os.kill(os.getpid(), number)        # a launcher sends it again, to a process that ends already
        assert seen == [1]
    finally:
        signal.signal(number, before)
