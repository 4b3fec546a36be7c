"""Plain definitions, number by number, that several tests hold the code to."""
import math

import numpy as np
import torch
from torch.nn import functional as F


def sampling_weights_by_definition(tscale, num_sample, num_sample_perbin, ratio, after=1):
    """The sampling weights of the BM layer: float32 [T, N, T, T], indices t, n, start, end.

    ``after`` is 1 for the reference of today. mmaction2, OpenTAD and the reference of 2019 have 0.
    """
    weights = np.zeros((tscale, num_sample, tscale, tscale))
    count = num_sample * num_sample_perbin
    for start in range(tscale):
        for end in range(start, tscale):
            length = float(end + after - start) + 1
            low, high = start - length * ratio, end + after + length * ratio
            step = (high - low) / (count - 1.0)
            for i in range(count):
                point = low + step * i
                fraction, below = math.modf(point)
                for position, weight in ((int(below), 1 - fraction), (math.ceil(point), fraction)):
                    if 0 <= position < tscale:
                        weights[position, i // num_sample_perbin, start, end] += weight
    return (1.0 / num_sample_perbin * weights).astype(np.float32)


def by_duration(weights, durations):
    """[..., T, T] at [start, end] -> [..., D, T] at [duration, start], as mmaction2 and OpenTAD have it."""
    tscale = weights.shape[-1]
    map_ = np.zeros(weights.shape[:-2] + (durations, tscale), weights.dtype)
    for duration in range(durations):
        for start in range(tscale - duration):
            map_[..., duration, start] = weights[..., start, start + duration]
    return map_


def network_by_definition(parameter, opt, x):
    """What BMN computes, by its definition: the boundary-matching map, the Conv3d, whole maps throughout.

    Args:
        parameter: {name: tensor} of the network.
        opt: temporal_scale, num_sample, num_sample_perbin, prop_boundary_ratio; layout and max_duration where they are
            not the reference's.
        x: [B, C, T].

    Returns:
        confidence map [B, 2, T, T] at [start, end] and start and end [B, T]. In the layouts by duration, a cell that is
        no proposal is found at [start, (start + duration) mod T].
    """
    tscale = opt["temporal_scale"]
    durations = opt.get("max_duration", 0) or tscale
    by_pair = opt.get("layout", "reference") == "reference"
    weights = sampling_weights_by_definition(tscale, opt["num_sample"], opt["num_sample_perbin"],
                                             opt["prop_boundary_ratio"], int(by_pair))
    weights = torch.from_numpy(weights if by_pair else by_duration(weights, durations)).to(x)
    if by_pair:         # what is too long samples nothing
        weights = torch.tril(weights, durations - 1)

    def conv(name, x, function=F.conv1d, **how):
        return function(x, parameter[name + ".weight"], parameter[name + ".bias"], **how)
    base = F.relu(conv("x_1d_b.2", F.relu(conv("x_1d_b.0", x, padding=1, groups=4)), padding=1, groups=4))
    start, end = (torch.sigmoid(conv(head + ".2", F.relu(conv(head + ".0", base, padding=1, groups=4))))[:, 0]
                  for head in ("x_1d_s", "x_1d_e"))
    sampled = torch.einsum("bct,tnij->bcnij", F.relu(conv("x_1d_p.0", base, padding=1)), weights)
    cells = F.relu(conv("x_3d_p.0", sampled, F.conv3d)).squeeze(2)
    cells = F.relu(conv("x_2d_p.0", cells, F.conv2d))
    cells = F.relu(conv("x_2d_p.2", cells, F.conv2d, padding=1))
    cells = F.relu(conv("x_2d_p.4", cells, F.conv2d, padding=1))
    cells = torch.sigmoid(conv("x_2d_p.6", cells, F.conv2d))
    if by_pair and durations == tscale:
        return cells, start, end
    if by_pair:
        return torch.triu(torch.tril(cells, durations - 1)), start, end
    rows = []
    for first in range(tscale):
        durations_here = [(last - first) % tscale for last in range(tscale)]
        rows.append(torch.stack([cells[:, :, duration, first] if duration < durations and (
            durations == tscale or first + duration < tscale) else torch.zeros_like(cells[:, :, 0, 0])
            for duration in durations_here], -1))
    return torch.stack(rows, 2), start, end


def boundary_labels_by_definition(fractions, tscale, layout):
    """Labels of one kind of boundary, [T], from its positions in fractions of the video."""
    low, high = {"reference": (-0.5, 0.5), "reference2019": (-0.5, 1.5), "mmaction2": (-0.5, 1.5), "opentad": (0, 1)}[
        layout]
    labels = []
    for position in range(tscale):
        first, last = (position + low) / tscale, (position + high) / tscale
        covered = [max(0.0, min(last, at + 1.5 / tscale) - max(first, at - 1.5 / tscale)) / (last - first)
                   for at in fractions]
        labels.append(max(covered))
    if layout == "opentad":         # its own code rounds the part that is covered down to a whole number
        return np.array([float(label > 1 - 1e-6) for label in labels])
    return np.array(labels)


def candidates_by_definition(start, end, regression, classification, layout, max_duration=0):
    """{(xmin, xmax): score} of one video, from scores [T] and maps [T, T] at [start, end], pair by pair."""
    tscale = len(start)

    def chosen(score, border):
        bins = np.zeros(tscale, bool)
        for i in range(tscale):
            if layout == "opentad":
                bins[i] = score[i] > 0.5 * score.max() or score[i] == score[max(i - 1, 0):i + 2].max()
            elif 0 < i < tscale - 1:
                bins[i] = (score[i] > score[i - 1] and score[i] > score[i + 1]) or score[i] > 0.5 * score.max()
        bins[border] = True
        return bins
    starts, ends, found = chosen(start, 0), chosen(end, -1), {}
    for first in range(tscale):
        for duration in range(max_duration or tscale):
            last = first + duration
            at = last if layout == "opentad" else last + 1
            if at < tscale and (layout == "reference" or (starts[first] and ends[at])):
                score = start[first] * end[at] * classification[first, last] * regression[first, last]
                found[first / tscale, (last + 1) / tscale] = score
    return found


def mmaction2_soft_nms_by_definition(found, alpha, low, high):
    """[(score, xmin, xmax)], best first, at most 100: mmaction2's rule on {(xmin, xmax): score}."""
    left, kept = [[score, *segment] for segment, score in found.items()], []
    while left and len(kept) <= 100:
        best = max(left, key=lambda row: row[0])
        left.remove(best)
        kept.append(tuple(best))
        for row in left:
            inter = max(0.0, min(best[2], row[2]) - max(best[1], row[1]))
            overlap = inter / ((best[2] - best[1]) - inter + row[2] - row[1])
            if overlap > low + (high - low) * (best[2] - best[1]):
                row[0] *= np.exp(-overlap ** 2 / alpha)
    return sorted(kept, key=lambda row: -row[0])[:100]


def soft_nms_by_the_rule(rows, opt):
    """The rule, written plainly. rows: [(score, xmin, xmax)] of Python floats, in the order of the table."""
    if len(rows) == 1:
        return rows
    candidates = sorted(rows, key=lambda row: -row[0])                              # a stable sort
    kept = []
    while len(candidates) > 1 and len(kept) < opt.get("kept", 100) + 1:
        scores = [row[0] for row in candidates]
        _, xmin, xmax = best = candidates.pop(scores.index(max(scores)))
        kept.append(best)
        for index, (other, first, last) in enumerate(candidates):
            inter = max(min(last, xmax) - max(first, xmin), 0.0)
            iou = inter / ((last - first) - inter + xmax - xmin)
            limit = opt["soft_nms_low_thres"] + (opt["soft_nms_high_thres"] - opt["soft_nms_low_thres"]) * (xmax - xmin)
            if iou > limit:
                decay = np.exp(np.array([-np.square(iou) / opt["soft_nms_alpha"]]))[0]
                candidates[index] = (float(other * decay), first, last)
    return sorted(kept, key=lambda row: -row[0])[:opt.get("kept", 100)]


def plain_rescaling(raw, frames, seconds, size, snippet=16):
    """Rescaled snippets: the rule, bin by bin and sample by sample, with an interpolation of its own."""
    fps = frames / seconds
    step = snippet / fps
    centre = [step / 2 + i * step for i in range(len(raw))]
    covered = len(raw) * snippet / frames * seconds
    if len(raw) == 1:
        return np.array([raw[0]] * size)

    def at(x):
        right = min(max(next((i for i, c in enumerate(centre) if c >= x), len(raw)), 1), len(raw) - 1)
        fraction = (x - centre[right - 1]) / (centre[right] - centre[right - 1])
        return raw[right - 1] + fraction * (raw[right] - raw[right - 1])

    rows = []
    for i in range(size):
        first = max(centre[0] + 0.0001, 1.0 / size * i * covered)
        last = min(centre[-1] - 0.0001, 1.0 / size * (i + 1) * covered)
        if last < centre[0] or first > centre[-1]:
            rows.append(np.zeros(raw.shape[1]))
        else:
            rows.append(np.mean([at(first + (last - first) / 2 * k) for k in range(3)], axis=0))
    return np.array(rows)
