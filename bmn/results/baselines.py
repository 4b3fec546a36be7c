"""Proposals that look at no video: figures on a new data set mean little without theirs beside them."""
import heapq

import numpy as np

GRID = 100          # positions on which the ends of a proposal lie
MOST = 4000         # training actions that are looked at; more change the figures in the third digit


def best_list(segments: np.ndarray, thresholds: np.ndarray, number: int) -> np.ndarray:
    """The list of proposals that serves the given actions best, one list for all videos.

    It is chosen greedily: each proposal is the one that adds most to the mean recall of the actions. Since that gain
    only falls while the list grows, a proposal whose gain is still the largest after it was computed again is the one.

    Args:
        segments: float64 [G, 2], (start, end) of actions as fractions of their videos.
        thresholds: [H], tIoU at which recall is measured.
        number: length of the list; it ends earlier when no proposal adds anything.

    Returns:
        float64 [n, 3]: score (falling), xmin, xmax as fractions.
    """
    segments = segments[::-(-len(segments) // MOST)]
    start, end = np.triu_indices(GRID)
    xmin, xmax = start / float(GRID), (end + 1) / float(GRID)
    reached = np.empty((len(xmin), len(segments)), np.uint8)        # number of thresholds that a pair reaches
    for rows in np.array_split(np.arange(len(xmin)), 50):           # in pieces, because of the memory
        inter = np.maximum(np.minimum(xmax[rows, None], segments[:, 1])
                           - np.maximum(xmin[rows, None], segments[:, 0]), 0)
        union = (xmax - xmin)[rows, None] + (segments[:, 1] - segments[:, 0]) - inter
        reached[rows] = np.searchsorted(thresholds, inter / union, side="right")
    best = np.zeros(len(segments), np.uint8)
    heap = [(-int(gain), pair) for pair, gain in enumerate(reached.sum(axis=1, dtype=np.int64))]
    heapq.heapify(heap)
    chosen = []
    while heap and len(chosen) < number:
        pair = heapq.heappop(heap)[1]
        gain = int(np.maximum(reached[pair], best).sum(dtype=np.int64) - best.sum(dtype=np.int64))
        if gain == 0:
            continue
        if heap and gain < -heap[0][0]:
            heapq.heappush(heap, (-gain, pair))
            continue
        chosen.append(pair)
        best = np.maximum(best, reached[pair])
    score = np.arange(len(chosen), 0, -1) / float(max(len(chosen), 1))
    return np.stack([score, xmin[chosen], xmax[chosen]], axis=1)


def random_list(number: int, generator: np.random.RandomState) -> np.ndarray:
    """``number`` proposals whose two ends are uniform: float64 [n, 3], as :func:`best_list` returns them."""
    ends = np.sort(generator.rand(number, 2), axis=1)
    return np.column_stack([np.arange(number, 0, -1) / float(number), ends])


def in_seconds(proposals: np.ndarray, seconds: float) -> np.ndarray:
    """Proposals (score, xmin, xmax) in seconds of a video of that length."""
    return proposals * np.array([1.0, seconds, seconds])
