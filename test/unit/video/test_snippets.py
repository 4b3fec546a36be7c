"""Which frames a row is made of: the plain rule, written down a second time."""
import sys

import pytest

if sys.version_info < (3, 11):
    pytest.skip("videos need Python 3.11", allow_module_level=True)

from bmn.errors import UserError
from bmn.video.snippets import Sampling, check, indices, rows_of, snippets


def rows(frames, sampling, looked_at):
    """The plain rule: cut the frames into cells, take the middle of each, repeat the first and the last frame."""
    found = []
    for row in range(max(1, frames // sampling.stride)):
        centre = row * sampling.stride + sampling.stride / 2
        first = int((centre - sampling.length / 2) // 1)
        middles = [first + (one + 0.5) * sampling.length / looked_at for one in range(looked_at)]
        found.append([min(max(int(middle // 1), 0), frames - 1) for middle in middles])
    return found


@pytest.mark.parametrize("case", range(300))
def test_rows_are_the_middles_of_cells(case, rng):
    rng.seed(case)
    length, stride = rng.randint(1, 40, 2)
    sampling, looked_at, frames = Sampling(int(length), int(stride)), int(rng.randint(1, length + 1)), int(
        rng.randint(1, 130))
    prepared = []
    got = list(snippets(range(frames), sampling, looked_at, lambda one: prepared.append(one) or one))
    assert got == rows(frames, sampling, looked_at) and len(got) == rows_of(frames, sampling.stride)
    assert len(prepared) == len(set(prepared))           # each frame is prepared once


def test_whole_cells_of_sixteen_frames_are_the_published_snippets():
    assert list(snippets(range(50), Sampling(), 16, int)) == [list(range(first, first + 16)) for first in (0, 16, 32)]
    assert indices(2, Sampling(16, 16), 4) == [34, 38, 42, 46]


def test_few_frames_are_kept():
    alive, most = set(), 0

    class Frame:
        def __init__(self, number):
            self.number = number
            alive.add(number)

        def __del__(self):
            alive.discard(self.number)

    for _ in snippets(range(1000), Sampling(16, 4), 16, Frame):
        most = max(most, len(alive))
    assert most <= 16 + 4


def test_no_frames_are_no_rows():
    assert list(snippets([], Sampling(), 4, int)) == []


def test_a_snippet_has_the_frames_that_the_backbone_needs():
    check(Sampling(16), 16)
    with pytest.raises(UserError, match=r"--snippet_frames 16 is less than the 17 frames"):
        check(Sampling(16), 17)
