"""Windows over long videos: where they lie, which actions count in them, and the features that they get.

The features of a video are rows at their own rate. A window has W positions, and position i of a window that begins at
position a is row (a + i) * k of the features, where k is --window_subsample. The time of a position is the centre of
its row's snippet. A window knows its features only by the fraction of them at which it lies. So labels and proposals
are scaled by the same lengths as those of whole videos. The features reach from the beginning of the first snippet to
the end of the last one; where nothing else is known, a snippet is as long as the step from one row to the next.
"""
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from bmn import extracted
from bmn.data.annotations import Video
from bmn.data.feature_files import few
from bmn.errors import UserError
from bmn.values import counted

RESCALED = 1.5          # the longest video by the shortest, where features of as many rows cannot have one rate
COVERED = (0.9, 1.1)    # of a video, by its rows at --feature_stride; more than half of the videos must lie within


class Window(NamedTuple):
    """A window of a video.

    Attributes:
        name: the video.
        first: position of the video at which it begins.
        rows: how many of its positions are rows of the features; the rest is padding.
        windows: number of windows of the video.
        total: rows of the features of the video.
        step: k, rows from one position to the next.
        margin: rows by which a snippet reaches beyond its row on either side, because it is longer than the stride.
    """
    name: str
    first: int
    rows: int
    windows: int
    total: int
    step: int
    margin: float = 0.0

    def fraction(self, position: Any) -> Any:
        """Fraction of the features at a boundary: 0 is the beginning of the window, ``rows`` its end."""
        # Position i is the interval [i, i + 1], and its centre is that of row (first + i) * step.
        row = (self.first + position) * self.step + (1 - self.step) / 2.0
        return (row + self.margin) / (self.total + 2 * self.margin)

    @property
    def rows_of_file(self) -> slice:
        """Its rows among those of the features."""
        return slice(self.first * self.step, (self.first + self.rows - 1) * self.step + 1, self.step)


def cut(name: str, total: int, opt: dict, margin: float = 0.0) -> List[Window]:
    """The windows of a video, in order. The last one ends with the video; only a video shorter than W is padded.

    Args:
        name: the video.
        total: rows of its features.
        opt: dict with window, window_overlap and window_subsample.
        margin: what :func:`margin_of` returned.
    """
    size, step = opt["window"], opt["window_subsample"]
    positions = -(-total // step)
    stride = max(1, int(size * (1 - opt["window_overlap"]) + 1e-6))         # 10 * (1 - 0.9) is below 1
    begins = list(range(0, max(positions - size, 0), stride)) + [max(positions - size, 0)]
    return [Window(name, begin, min(size, positions), len(begins), total, step, margin) for begin in begins]


def margin_of(opt: dict) -> float:
    """By how many rows a snippet of --feature_snippet reaches beyond its row, on either side."""
    snippet = opt["feature_snippet"]
    return (_number(snippet) / _number(opt["feature_stride"]) - 1) / 2 if snippet else 0.0


def _number(seconds_or_frames):
    return float(seconds_or_frames.rstrip("fs"))


def with_stride(videos: Dict[str, Video], rows: Dict[str, int], opt: dict, margin: float = 0.0,
                lengths: Optional[Dict[str, extracted.Length]] = None) -> Dict[str, Video]:
    """The videos with the lengths that their features cover: by --feature_stride, else by videos.csv, else as they are.

    Args:
        videos: {name: Video}.
        rows: {name: rows of its features}.
        opt: dict with feature_stride.
        margin: what :func:`margin_of` returned.
        lengths: what extracted.lengths_of returned of the features.

    Raises:
        UserError: the features are not at their own rate, a stride in frames needs the number of frames of a video, or
            most features would cover much more or much less than their video.
    """
    stride = opt["feature_stride"]
    durations = [video.seconds for video in videos.values()]
    if len({rows[name] for name in videos}) == 1 and max(durations) > RESCALED * min(durations):
        raise UserError("the features of all %d videos have %s, although the videos have from %.4g to %.4g seconds: "
                        "they were rescaled, so leave --window out, or give features at their own rate"
                        % (len(durations), counted(rows[next(iter(videos))], "row"), min(durations), max(durations)))
    if not stride and lengths:
        return {name: _covering(video, rows[name] * lengths[name].stride / lengths[name].fps)
                for name, video in videos.items()}
    if not stride:
        return videos
    in_frames, scaled = stride.endswith("f"), {}
    unknown = [name for name, video in videos.items() if in_frames and not video.frames]
    if unknown:
        raise UserError("--feature_stride %s is in frames, but nothing says how many frames %s (%s): give it in seconds"
                        % (stride, counted(len(unknown), "video") + " have" if len(unknown) > 1 else "a video has",
                           few(unknown)))
    for name, video in videos.items():
        step = _number(stride) * (video.seconds / video.frames if in_frames else 1)
        scaled[name] = _covering(video, (rows[name] + 2 * margin) * step)
    part = {name: video.feature_seconds / video.seconds for name, video in scaled.items()}
    odd = [name for name in part if not COVERED[0] <= part[name] <= COVERED[1]]
    if len(odd) > len(part) / 2.0:
        raise UserError("at --feature_stride %s, the features of %d of %d videos do not cover their video (%s: %d rows "
                        "are %.1f seconds, and the video has %.1f): give the time from one row to the next"
                        % (stride, len(odd), len(part), odd[0], rows[odd[0]], scaled[odd[0]].feature_seconds,
                           videos[odd[0]].seconds))
    return scaled


def _covering(video, seconds):
    """The video with features that cover so many seconds."""
    return video._replace(feature_seconds=seconds, proposal_seconds=seconds)


def in_window(window: Window, video: Video, size: int, least: float) -> Tuple[Video, int]:
    """(the window as a video of its own, number of actions that lie in the window but not enough of them).

    Args:
        window: of the video.
        video: its actions and lengths.
        size: W.
        least: part of an action that must lie in the window. The action is then cut to it.
    """
    covered = video.feature_seconds
    begin, end, beyond = (window.fraction(position) * covered for position in (0, window.rows, size))
    # The outermost windows reach to the ends of the video, which may lie between two of their rows.
    lowest = begin if window.first else min(begin, 0.0)
    highest = max(end, covered) if (window.first + window.rows) * window.step >= window.total else end
    actions, too_little = [], 0
    for start, stop, label in video.actions:
        if start >= video.seconds or stop < 0:
            continue                # outside the video, as in dataset.Labels
        first, last = (min(max(edge, 0.0), covered) for edge in (start, stop))      # as for a whole video
        inside = min(last, highest) - max(first, lowest)
        if inside < 0 or (inside == 0 and first < last):
            continue
        if inside < least * (last - first):
            too_little += 1
            continue
        actions.append((max(first, lowest) - begin, min(last, highest) - begin, label))
    return Video(float("inf"), beyond - begin, beyond - begin, actions, video.subset), too_little


def padded(features: np.ndarray, size: int) -> np.ndarray:
    """[C, rows] filled up with zeros to [C, W]."""
    return np.pad(features, ((0, 0), (0, size - features.shape[1])), "constant")


def joined(windows: List[Window], curve: np.ndarray) -> np.ndarray:
    """One curve over a video from those of its windows, [windows, W] -> [positions]: the mean where they overlap."""
    total = np.zeros((2, windows[-1].first + windows[-1].rows))
    for window, its_curve in zip(windows, curve):
        total[0, window.first:window.first + window.rows] += its_curve[:window.rows]
        total[1, window.first:window.first + window.rows] += 1
    return total[0] / total[1]
