"""The layouts of BMN: what the cells of its map are, where a proposal is sampled, what its boundaries mean.

Published implementations of BMN have the same weights and compute different networks with them. All that differs is in
this one table. Whatever the layout, the network's outputs here have one order, [start, end] (models.py). So the labels
of the map, the losses, the figures and the result files need not know it.
"""
from typing import Any, NamedTuple, Tuple

from bmn.errors import UserError


class Layout(NamedTuple):
    """How an implementation lays out its map; positions s <= e are the first and the last of a proposal.

    duration_first: the 3x3 convolutions run on cells [e - s, s], and not on [s, e].
    sampled_after: a proposal is sampled from s to e + sampled_after, and wider by its length times the ratio.
    anchor: in the labels of the boundaries, position i stands for the interval [i + anchor[0], i + anchor[1]] / T.
    whole_anchors: a label is 1 where a boundary covers the whole interval and else 0, and not the part that it covers.
    end_after: the probability of the end is read at position e + end_after. A proposal whose end would be read after
        the last position is never proposed.
    peaks: which positions start or end a proposal: "" all of them; "inside" peaks between two lower neighbours and
        positions above half of the highest, and the first (start) and last (end) position; "anywhere" the same, but
        neighbours may be equal and the borders may be peaks.
    soft_nms: "reference" drops the last remaining candidate, "mmaction2" keeps it. They also compute the IoU in another
        order of operations, whose rounding decides where it equals the threshold.
    """
    duration_first: bool
    sampled_after: int
    anchor: Tuple[float, float]
    whole_anchors: bool
    end_after: int
    peaks: str
    soft_nms: str


LAYOUTS = {
    "reference": Layout(False, 1, (-0.5, 0.5), False, 1, "", "reference"),                  # JJBOY's, since June 2020
    "reference2019": Layout(True, 0, (-0.5, 1.5), False, 1, "inside", "reference"),         # JJBOY's, October 2019
    "mmaction2": Layout(True, 0, (-0.5, 1.5), False, 1, "inside", "mmaction2"),
    "opentad": Layout(True, 0, (0, 1), True, 0, "anywhere", "reference"),
}


def same_network(one: str, other: str) -> bool:
    """Whether two layouts compute the same outputs from the same weights."""
    return LAYOUTS[one][:2] == LAYOUTS[other][:2]


def checked_duration(tscale: int, max_duration: int) -> int:
    """``max_duration`` as it is stored: 0 where proposals may have all T positions.

    Raises:
        UserError: it is above T.
    """
    if max_duration > tscale:
        raise UserError("--max_duration %d is above the %d positions of --temporal_scale or --window: give at most "
                        "that, or 0" % (max_duration, tscale))
    return 0 if max_duration == tscale else max_duration


def map_cell(layout: str, start: Any, end: Any) -> Tuple[Any, Any]:
    """(row, column) of a proposal in the map of ``layout``."""
    return (end - start, start) if LAYOUTS[layout].duration_first else (start, end)
