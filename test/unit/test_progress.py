"""How far a long loop is, where no terminal shows a bar."""
import pytest

from bmn import progress as module
from bmn.progress import Progress, progress, size_text
from bmn.values import counted


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets: clock[0] is the time in seconds."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_so_often_and_none_at_the_end(clock):
    lines = []
    with Progress("inference", 100, "video", 30, lines.append) as one:
        for _ in range(10):
            clock[0] += 16
            one.add(10)
    assert lines == ["inference: 20 of 100 videos, ends in 0:02:08", "inference: 40 of 100 videos, ends in 0:01:36",
                     "inference: 60 of 100 videos, ends in 0:01:04", "inference: 80 of 100 videos, ends in 0:00:32"]


def test_more_than_there_is_counts_as_all(clock):
    """The ranks of a run work at the same pace, but the last block may be short."""
    lines = []
    with Progress("inference", 5, "video", 1, lines.append) as one:
        one.add(3)
        clock[0] += 2
        one.add(3)
    assert one.done == 5 and lines == []


def test_a_terminal_shows_a_bar_and_no_lines(clock, monkeypatch):
    shown = []

    class Bar:
        disable, n = False, 0

        def update(self, number):
            self.n += number
            shown.append(self.n)

        def close(self):
            shown.append("closed")

    lines = []
    monkeypatch.setattr(module, "tqdm", lambda **_: Bar())
    with Progress("inference", 5, "video", 1, lines.append) as one:
        for number in (2, 2, 2):
            clock[0] += 2
            one.add(number)
    assert shown == [2, 4, 5, "closed"] and lines == []


def test_what_is_counted_is_passed_on_also_where_nothing_is_said(clock, capsys):
    assert list(progress(iter("abc"), "checking", 3, "video", log=None)) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_words():
    assert [counted(number, "video") for number in (0, 1, 2)] == ["0 videos", "1 video", "2 videos"]
    assert [size_text(number) for number in (1234567, 2300000000, 99000000)] == ["1.2 MB", "2.30 GB", "99.0 MB"]


def test_the_rate_is_said_where_it_is_asked_for(clock):
    lines = []
    with Progress("extracting", 30, "video", 10, lines.append, per_minute=True) as one:
        clock[0] += 30
        one.add(10)
    assert lines == ["extracting: 10 of 30 videos, 20.0 a minute, ends in 0:01:00"]
