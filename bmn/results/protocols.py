"""The evaluation protocols (--protocol): at which tIoU and how many proposals, and what counts as ground truth."""
from typing import Dict, List, NamedTuple, Tuple

import numpy as np

AMBIGUOUS = "Ambiguous"     # THUMOS-14's label of actions of which its annotators were not sure
Action = Tuple[float, float, str]       # start and end in seconds, label


class Protocol(NamedTuple):
    """How results are measured.

    Attributes:
        recall_at: tIoU of average recall, [H].
        numbers: the average numbers of proposals whose AR@AN is reported.
        points: average numbers of the AR-AN curve: 1, 2, ..., points.
        precision_at: tIoU of mAP.
        reported_at: those of them that get a line of their own.
        ambiguous: label of actions that are neither hit nor miss, "" where there are none.
        distinct: whether actions without length and repeated actions are left out, as OpenTAD does.
        interpolated: whether average precision is interpolated, as ActivityNet does it and the THUMOS-14 kit does not.
    """
    recall_at: np.ndarray
    numbers: Tuple[int, ...]
    points: int
    precision_at: np.ndarray
    reported_at: Tuple[float, ...]
    ambiguous: str = ""
    distinct: bool = False
    interpolated: bool = True

    def split(self, actions: Dict[str, List[Action]]) -> Tuple[Dict[str, List[Action]], Dict[str, List[Action]]]:
        """({id: actions that count}, {id: ambiguous actions}) of a ground truth, without videos that have none."""
        counted = {name: [one for one in its if one[2] != self.ambiguous or not self.ambiguous]
                   for name, its in actions.items()}
        doubtful = {name: [one for one in its if self.ambiguous and one[2] == self.ambiguous]
                    for name, its in actions.items()}
        if self.distinct:
            counted = {name: _distinct(its) for name, its in counted.items()}
        return tuple({name: its for name, its in part.items() if its} for part in (counted, doubtful))


def _distinct(actions):
    """Actions with a length, each once: a repetition has the same label, and both its ends within a millisecond."""
    kept = []
    for start, end, label in actions:
        repeated = any(label == other and abs(start - first) <= 1e-3 and abs(end - last) <= 1e-3
                       for first, last, other in kept)
        if end > start and not repeated:
            kept.append((start, end, label))
    return kept


_ACTIVITYNET = Protocol(np.linspace(0.5, 0.95, 10), (1, 5, 10, 100), 100, np.linspace(0.5, 0.95, 10),
                        (0.5, 0.75, 0.95))
_THUMOS14 = Protocol(np.linspace(0.5, 1.0, 11), (50, 100, 200, 500, 1000), 1000, np.linspace(0.3, 0.7, 5),
                     (0.3, 0.4, 0.5, 0.6, 0.7), ambiguous=AMBIGUOUS)
PROTOCOLS = {
    "activitynet": _ACTIVITYNET,
    "opentad": _ACTIVITYNET._replace(distinct=True),
    "hacs": _ACTIVITYNET,
    "thumos14": _THUMOS14,
    "thumos14-kit": _THUMOS14._replace(interpolated=False),
}
