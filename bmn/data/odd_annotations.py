"""What is odd in annotations and stops no run, and what it does to labels and figures."""
from collections import Counter
from typing import Any, Callable, Dict, List, NamedTuple, Sequence

from bmn.data.feature_files import few
from bmn.values import counted, number

COVERED = (0.95, 1.05)  # features that cover less or more of their video than this are worth a word
FIRST_PART = 0.05       # where most videos have all their actions in this part, a unit may be wrong


class Odd(NamedTuple):
    """What is odd.

    Attributes:
        noun: what there is a number of.
        what: how they are odd; follows the number and the noun.
        effect: what becomes of it.
        names: of the videos, one for each of the number.
        bends: whether it bends the figures of a run, so that its log says it.
    """
    noun: str
    what: str
    effect: str
    names: List[str]
    bends: bool = False

    def __str__(self):
        return "%s %s: %s (%s)" % (counted(len(self.names), self.noun), self.what, self.effect,
                                   few(list(dict.fromkeys(self.names))))


def odd_annotations(annotations: Any, subsets: Sequence[Dict[str, Any]]) -> List[Odd]:
    """What is odd in some subsets, each {name: Video}, of the annotations (bmn/data/annotations.py)."""
    videos = {name: video for subset in subsets for name, video in subset.items()}

    def named(holds: Callable[[Any, float, float], bool]):
        return [name for name, video in videos.items() for start, end, _ in video.actions if holds(video, start, end)]

    listed = Counter(video.name for video in annotations.listed or ())
    covered = {name: video.feature_seconds / video.seconds for name, video in videos.items()}
    worst = max(covered, key=lambda name: abs(covered[name] - 1), default=None)
    found = [
        Odd("video", "in both subsets", "the figures are also those of videos that the network was trained on",
            [name for name in subsets[0] if name in subsets[-1]] if len(subsets) > 1 else [], True),
        Odd("video", "with features for less than 95 % or more than 105 % of the length",
            "labels and proposals are scaled by what the features cover, and shifted by as much where the frames were "
            "counted wrongly; the worst: %s, %.0f %%" % (worst, 100 * covered.get(worst, 1)),
            [name for name in videos if not COVERED[0] <= covered[name] <= COVERED[1]], True),
        Odd("action", "with an end before the start", "left out",
            [name for name, video in videos.items() for _ in range(video.reversed_actions)], True),
        Odd("action", "outside the video", "no labels, and counted as missed in the evaluation",
            named(lambda video, start, end: start >= video.seconds or end < 0), True),
        Odd("action", "with a start before 0 s", "the labels begin with the video",
            named(lambda video, start, end: start < 0 <= end), True),
        Odd("video", "with all actions in the first %g %% of the length" % (100 * FIRST_PART),
            "are times and lengths in the same unit?", _early(videos), True),
        Odd("video", "without actions", "all labels are zero",
            [name for name, video in videos.items() if not video.actions and not video.reversed_actions]),
        Odd("action", "without length", "labelled boundaries, but no proposal overlaps",
            named(lambda video, start, end: start == end)),
        Odd("action", "with a start after the end of the features", "labels at the last position",
            named(lambda video, start, end: video.feature_seconds <= start < video.seconds)),
        Odd("action", "with an end more than a second after that of the video", "the labels end with the video",
            named(lambda video, start, end: start < video.seconds and end > video.seconds + 1)),
        Odd("action", "without a label", "of no use for detection",
            [name for name, video in videos.items() for _, _, label in video.actions if not label]),
        Odd("video", "with proposals that are scaled by more than 10 % another length than the labels",
            "so the reference has it; write the right feature_frame",
            [name for name, video in videos.items() if abs(video.proposal_seconds / video.feature_seconds - 1) > 0.1]),
        Odd("video", "listed more than once", "counted once",
            [name for name, count in listed.items() if count > 1]),
        Odd("video", "with a number of frames and a rate that contradict the length", "only the length is used",
            [name for file in annotations.files for name, entry in file.videos.items() if not _consistent(entry)])]
    return [one for one in found if one.names]


def _early(videos):
    """The videos with all actions in the first part, where at least half of them are such."""
    last = {name: max(end for _, end, _ in video.actions) / video.seconds
            for name, video in videos.items() if video.actions}
    early = [name for name, end in last.items() if end < FIRST_PART]
    return early if 2 * len(early) > len(last) else []


def _consistent(entry):
    """Whether the length of an entry is within 5 % of its frames over its rate, where it has both."""
    frames, rate, seconds = (number(entry.get(key)) for key in ("frame", "fps", "duration"))
    return not (frames and rate and seconds) or abs(frames / rate / seconds - 1) <= 0.05
