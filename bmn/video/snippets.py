"""Which frames a row of features is made of.

The time line is cut into cells of ``stride`` frames, and row i describes cell i. Its snippet of ``length`` frames lies
in the middle of the cell: it is the cell itself where both numbers are equal, and reaches into the neighbours where it
is longer. Beyond both ends of the video, its first and its last frame are repeated. So whatever the length of a
snippet, the centre of row i is (i + 1/2) * stride frames after the beginning, as every reader of features supposes. As
in the published features, a last cell that is not whole has no row.
"""
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from bmn.errors import UserError
from bmn.values import counted


class Sampling(NamedTuple):
    """How snippets are taken: frames of a snippet, frames from one to the next, and their rate (None: the file's)."""
    length: int = 16
    stride: int = 16
    fps: float | None = None


def rows_of(frames: int, stride: int) -> int:
    """Number of rows of a video of so many frames. A video shorter than a cell has one."""
    return max(1, frames // stride)


def indices(row: int, sampling: Sampling, looked_at: int) -> list[int]:
    """The frames of a row, of which ``looked_at`` are taken at equal distances. The first may lie below 0."""
    first = (2 * row * sampling.stride + sampling.stride - sampling.length) // 2
    return [first + (2 * one + 1) * sampling.length // (2 * looked_at) for one in range(looked_at)]


def snippets(frames: Iterable[Any], sampling: Sampling, looked_at: int,
             prepare: Callable[[Any], Any]) -> Iterator[list[Any]]:
    """For each row the list of its ``looked_at`` frames, prepared.

    Args:
        frames: at equal distances in time, such as ``decoding.on_grid`` yields them.
        sampling: as above.
        looked_at: frames of a snippet that are taken.
        prepare: called once with each frame that is taken.

    Returns:
        (through StopIteration) the number of frames that there were.
    """
    pending: deque[tuple[int, list[int]]] = deque()
    kept: dict[int, Any] = {}
    count, begun, shown = 0, 0, None

    def take(index, frame):
        if index not in kept:
            kept[index] = prepare(frame)

    for index, shown in enumerate(frames):
        while indices(begun, sampling, looked_at)[0] <= index:
            pending.append((begun, [max(0, one) for one in indices(begun, sampling, looked_at)]))
            begun += 1
        if any(index in wanted for _, wanted in pending):
            take(index, shown)
        count = index + 1
        while pending and count >= max((pending[0][0] + 1) * sampling.stride, pending[0][1][-1] + 1):
            yield [kept[one] for one in pending.popleft()[1]]
            oldest = min(pending[0][1][0] if pending else count, indices(begun, sampling, looked_at)[0])
            for one in [one for one in kept if one < max(0, oldest)]:
                del kept[one]
    if not count:
        return 0
    rows = rows_of(count, sampling.stride)
    if not begun:                       # a video so short that the middle of its only cell lies beyond its end
        pending.append((0, indices(0, sampling, looked_at)))
    for row, wanted in pending:         # these reach beyond the end, or begin in a cell that is not whole
        if row < rows:
            if wanted[-1] >= count:
                take(count - 1, shown)
            yield [kept[min(one, count - 1)] for one in wanted]
    return count


def check(sampling: Sampling, looked_at: int) -> None:
    """Insist that a snippet has as many frames as the backbone looks at.

    Raises:
        UserError: it has fewer.
    """
    if sampling.length < looked_at:
        raise UserError("--snippet_frames %d is less than the %s that the backbone looks at: give --snippet_frames "
                        "%d or more" % (sampling.length, counted(looked_at, "frame"), looked_at))
