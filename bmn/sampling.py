"""Where a proposal is sampled: the weights of the BM layer (paper, section 3.3), and what such weights tell.

The weights follow from the layout and four numbers. So a file that holds them (``sample_mask``) tells all of these.
"""
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from bmn.errors import UserError
from bmn.layouts import LAYOUTS, map_cell, same_network

CHUNK = 4096                # proposals whose points are computed at once: what they need stays in the cache


def proposals(tscale: int, max_duration: int = 0) -> Tuple[np.ndarray, np.ndarray]:
    """(start, end), the first and last position of each proposal, sorted by both.

    Args:
        tscale: T.
        max_duration: D, the longest proposal in positions; 0: T.
    """
    start, end = np.triu_indices(tscale)
    if not max_duration:
        return start, end
    short = end - start < max_duration
    return start[short], end[short]


def sampling_weights(tscale: int, num_sample: int, num_sample_perbin: int, ratio: float, layout: str = "reference",
                     max_duration: int = 0) -> Tuple[np.ndarray, ...]:
    """The sampling weights that are not zero, sorted by (proposal, n, t).

    A proposal (s, e) covers [s, e + 1] (in other layouts [s, e]), widened on either side by ``ratio`` times its number
    of positions. N * K points are spread evenly over that, and each of the N samples is the mean of K neighbouring
    points. A point between two positions takes from both, by linear interpolation; what falls outside 0..T-1 counts
    nothing.

    Args:
        tscale: T, positions of the feature sequence.
        num_sample: N, samples of a proposal.
        num_sample_perbin: K, points averaged into a sample.
        ratio: how far a proposal is widened, as a fraction of its length.
        layout: a name in LAYOUTS.
        max_duration: D, the longest proposal in positions; 0: T.

    Returns:
        (proposal, n, t, weight): three int64 arrays that say where each weight belongs, and float32 weights. Proposals
        are counted as in :func:`proposals`.

    Raises:
        UserError: N * K is 1, and a single point has no step to the next; or no point lies inside the video.
    """
    if num_sample * num_sample_perbin < 2:
        raise UserError("--num_sample 1 with --num_sample_perbin 1 leaves a single point to sample: raise one of them")
    start, end = proposals(tscale, max_duration)
    last = end + float(LAYOUTS[layout].sampled_after)
    parts = [_keys_and_weights(start[i:i + CHUNK], last[i:i + CHUNK], tscale, num_sample, num_sample_perbin, ratio)
             for i in range(0, len(start), CHUNK)]
    key = np.concatenate([key + i * CHUNK * num_sample * tscale for i, (key, _) in enumerate(parts)])
    if not len(key):
        raise UserError("--prop_boundary_ratio %g with %d points leaves no point inside the video: lower the ratio, or "
                        "raise --num_sample" % (ratio, num_sample * num_sample_perbin))
    sample, t = np.divmod(key, tscale)
    proposal, n = np.divmod(sample, num_sample)
    return proposal, n, t, np.concatenate([weight for _, weight in parts])


def _keys_and_weights(start, last, tscale, num_sample, num_sample_perbin, ratio):
    """For the proposals [p] given: (proposal * N + n) * T + t of each weight, ascending, and the weights."""
    points = num_sample * num_sample_perbin
    margin = (last - start + 1.0) * ratio
    low, high = start - margin, last + margin
    # The step first, then multiples of it: rounding decides some weights of about 1e-15, which count.
    point = low[:, None] + ((high - low) / (points - 1.0))[:, None] * np.arange(points)     # [p, N*K]
    fraction, below = np.modf(point)        # signed: a point in (-1, 0) gives its whole weight to position 0
    t = np.stack([below, np.ceil(point)], -1).astype(np.int64)                              # [p, N*K, 2]
    weight = np.stack([1 - fraction, fraction], -1)
    sample = np.repeat(np.arange(len(start) * num_sample), 2 * num_sample_perbin).reshape(t.shape)
    inside = (t >= 0) & (t < tscale)
    key, weight = (sample * tscale + t)[inside], weight[inside]
    # Weights of one position in one sample are added in the order of the points, in float64, and rounded once.
    order = np.argsort(key, kind="stable")
    key, weight = key[order], weight[order]
    first = np.concatenate([[True], key[1:] != key[:-1]])[:len(key)]        # no weight at all: a guess far outside
    total = (1.0 / num_sample_perbin * np.bincount(np.cumsum(first) - 1, weight)).astype(np.float32)
    return key[first][total != 0], total[total != 0]


def whole_mask(tscale: int, num_sample: int, num_sample_perbin: int, ratio: float, layout: str) -> np.ndarray:
    """The sampling weights as the implementation of ``layout`` holds them: float32 [T, N, T, T], t, n and its map."""
    proposal, n, t, weight = sampling_weights(tscale, num_sample, num_sample_perbin, ratio, layout)
    start, end = proposals(tscale)
    weights = np.zeros((tscale, num_sample, tscale, tscale), np.float32)
    weights[(t, n, *(index[proposal] for index in map_cell(layout, start, end)))] = weight
    return weights


# What sampling weights tell

MOST_PER_BIN = 16           # K that are tried
TOLERANCE = 2e-3            # float16 rounds a weight by 5e-4
RATIO_TOLERANCE = 1e-3      # of the ratio that the weights tell


def told_by_mask(mask: np.ndarray) -> Optional[Dict[str, Any]]:
    """The options of the network that sampling weights belong to, from a few of their columns.

    Args:
        mask: [T, N*T*T], as in a checkpoint's ``sample_mask``.

    Returns:
        {temporal_scale, num_sample, num_sample_perbin, prop_boundary_ratio, layout}, where the layout stands for all
        that compute the same network; None where the weights follow from none of these.
    """
    tscale = len(mask)
    if mask.ndim != 2 or tscale < 2 or mask.shape[1] == 0 or mask.shape[1] % tscale ** 2:
        return None
    mask = mask.reshape(tscale, -1, tscale, tscale)
    best = TOLERANCE, None
    for layout in ("reference", "mmaction2"):
        for bins, ratio in _guesses(mask, layout):
            error = _difference(mask, bins, ratio, layout)
            if error < best[0]:
                best = error, {"temporal_scale": tscale, "num_sample": mask.shape[1], "num_sample_perbin": bins,
                               "prop_boundary_ratio": ratio, "layout": layout}
    return best[1]


def sampling_differences(told: Optional[Dict[str, Any]], network: Any) -> List[Tuple[str, Any, Any]]:
    """[(option, what sampling weights tell, what ``network`` has)] where the two contradict each other.

    Args:
        told: what :func:`told_by_mask` returned; None contradicts nothing.
        network: an object with the options as attributes.
    """
    told = told or {}
    pairs = [(name, told[name], getattr(network, name)) for name in ("layout", "num_sample_perbin",
                                                                     "prop_boundary_ratio") if name in told]
    return [(name, one, other) for name, one, other in pairs if not (
        same_network(one, other) if name == "layout" else abs(one - other) < RATIO_TOLERANCE)]


def _guesses(mask, layout):
    """(K, ratio) that would place the samples of a short proposal in the middle where this mask has them."""
    tscale, samples = mask.shape[:2]
    yield 3, 0.5                            # what everybody takes; needed where a map is too small to tell
    start = (tscale - 1) // 2
    row, column = map_cell(layout, start, start)
    weights = mask[:, :, row, column].astype(np.float64)                        # [T, N]
    whole = np.flatnonzero(np.abs(weights.sum(0) - 1) < TOLERANCE)              # samples inside the video
    if len(whole) < 2:
        return
    centre = np.arange(tscale) @ weights
    first, last = whole[0], whole[-1]
    spacing = (centre[last] - centre[first]) / (last - first)                   # of two samples, K steps
    length = 1 + LAYOUTS[layout].sampled_after
    for bins in range(1, MOST_PER_BIN + 1):
        width = spacing * (samples * bins - 1) / bins                           # from the first point to the last
        ratio = (width - LAYOUTS[layout].sampled_after) / 2 / length
        if ratio > -TOLERANCE:
            for digits in (2, 4):
                yield bins, max(round(ratio, digits), 0.0)


def _difference(mask, bins, ratio, layout):
    """Largest difference in a few columns between ``mask`` [T, N, T, T] and the weights of these options."""
    tscale, samples = mask.shape[:2]
    if samples * bins < 2:
        return np.inf
    middle, far = (tscale - 1) // 2, tscale - 1
    looked_at = {(0, 0), (0, far), (far, far), (0, middle), (middle, middle), (middle, far), (far // 3, far * 2 // 3)}
    differences = []
    for start, end in looked_at:
        last = np.array([end + float(LAYOUTS[layout].sampled_after)])
        key, weight = _keys_and_weights(np.array([start]), last, tscale, samples, bins, ratio)
        wanted = np.zeros(samples * tscale)
        wanted[key] = weight
        row, column = map_cell(layout, start, end)
        found = mask[:, :, row, column].T.reshape(-1)
        differences.append(np.abs(found - wanted).max())
    # Cells that are no proposal sample nothing.
    row, column = (far, far) if LAYOUTS[layout].duration_first else (far, 0)
    return np.max(differences + [np.abs(mask[:, :, row, column]).max()])        # NaN where a weight is
