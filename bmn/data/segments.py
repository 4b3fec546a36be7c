"""Temporal segments: intersection and IoU, and the two durations by which seconds become fractions and back."""
import numpy as np


def intersection(start, end, other_start, other_end):
    """Length of the overlap of segments, 0 where they do not meet; arrays broadcast, any unit."""
    return np.maximum(np.minimum(end, other_end) - np.maximum(start, other_start), 0.0)


def iou(start, end, other_start, other_end):
    """Temporal intersection over union of segments [start, end] and [other_start, other_end].

    Arrays broadcast; any unit. Evaluated in the reference's order of operations, for its rounding decides
    comparisons with a threshold.
    """
    inter = intersection(start, end, other_start, other_end)
    return inter / ((end - start) - inter + other_end - other_start)


def tiou(start, end, other_start, other_end):
    """As :func:`iou`, in the order of operations of ActivityNet's evaluation; 0/0 (two segments of length 0) is NaN."""
    inter = intersection(start, end, other_start, other_end)
    with np.errstate(invalid="ignore", divide="ignore"):
        return inter / ((end - start) + (other_end - other_start) - inter)


def annotated_seconds(video):
    """Seconds that the features of a video cover: the scale of its labels. ``video``: its annotation entry."""
    return float(video["feature_frame"]) / video["duration_frame"] * video["duration_second"]


def proposal_seconds(video):
    """Seconds that its proposals are scaled to: whole snippets of 16 frames. ``video``: its annotation entry."""
    return float(video["duration_frame"] // 16 * 16) / video["duration_frame"] * video["duration_second"]
