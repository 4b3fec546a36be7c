"""Temporal segments: intersection and IoU."""
import numpy as np


def intersection(start: np.ndarray, end: np.ndarray, other_start: np.ndarray, other_end: np.ndarray) -> np.ndarray:
    """Length of the overlap of segments, 0 where they do not meet. Arrays broadcast; all have the same unit."""
    return np.maximum(np.minimum(end, other_end) - np.maximum(start, other_start), 0.0)


def iou(start: np.ndarray, end: np.ndarray, other_start: np.ndarray, other_end: np.ndarray) -> np.ndarray:
    """Temporal intersection over union of segments [start, end] and [other_start, other_end].

    Arrays broadcast; all have the same unit. The order of operations is the reference's, because its rounding decides
    comparisons with a threshold.
    """
    inter = intersection(start, end, other_start, other_end)
    return inter / ((end - start) - inter + other_end - other_start)


def tiou(start: np.ndarray, end: np.ndarray, other_start: np.ndarray, other_end: np.ndarray) -> np.ndarray:
    """The same as :func:`iou` in the order of operations of ActivityNet's evaluation.

    Where both segments have length 0, this is 0/0 and gives NaN.
    """
    inter = intersection(start, end, other_start, other_end)
    with np.errstate(invalid="ignore", divide="ignore"):
        return inter / ((end - start) + (other_end - other_start) - inter)
