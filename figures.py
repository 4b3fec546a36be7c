"""Figures: drawn on canvases of their own, no global state of matplotlib is touched."""
import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from files import replacing

CURVE_COLOURS = ("k", "r", "yellow", "b", "c", "m")
START_COLOUR, END_COLOUR, TRUTH_COLOUR, PROPOSAL_COLOUR = "#0072b2", "#d55e00", "#009e73", "#8da0b8"


def area(x, y):
    """Area under a curve, by trapezoids."""
    return (np.diff(x) * (y[1:] + y[:-1]) / 2.0).sum()


def save(figure, path):
    """Write a figure; the ending of ``path`` gives the format.

    Raises:
        UserError: the file cannot be written.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, format=os.path.splitext(path)[1][1:] or "png")


def recall_curve(average_nr_proposals, average_recall, recall, tiou_thresholds):
    """Recall against the average number of proposals, as the reference draws it."""
    figure = Figure(figsize=(12, 8))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, 1, 1)
    axes.plot(average_nr_proposals, average_recall, color="k", linewidth=4, label="tiou = 0.5:0.05:0.95, area=%.2f"
              % area(average_nr_proposals, average_recall))
    for index, threshold in enumerate(tiou_thresholds[::2]):
        axes.plot(average_nr_proposals, recall[2 * index], color=CURVE_COLOURS[index % 5 + 1], linewidth=4,
                  linestyle="--", label="tiou=[%s], area=%.2f"
                  % (threshold, area(average_nr_proposals, recall[2 * index])))
    axes.legend(loc="best")
    axes.set_ylabel("Average Recall", fontsize=14)
    axes.set_xlabel("Average Number of Proposals per Video", fontsize=14)
    axes.grid(True, which="both")
    axes.set_ylim(0, 1.0)
    axes.tick_params(labelsize=14)
    return figure


def prediction(title, seconds, start, end, confidence_map, proposals, truth=()):
    """What the network says of one video: boundary probabilities, best proposals and the confidence of every pair.

    Args:
        seconds: length of the time axis.
        start, end: [T], probability at each position.
        confidence_map: [2, T, T], channel 0 regression, 1 classification, at [start, end]; cells with start > end are
            not shown.
        proposals: [n, 3] (score, xmin, xmax as fractions), best first; the first ten are drawn.
        truth: (start, end, label) of each annotated action, in seconds, by start.
    """
    figure = Figure(figsize=(13, 6), constrained_layout=True)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.35, 1), height_ratios=(1, 1.3))
    figure.suptitle(title)
    curves = figure.add_subplot(grid[0, 0])
    at = np.arange(len(start)) * seconds / len(start)
    curves.plot(at, start, color=START_COLOUR, label="start")
    curves.plot(at, end, color=END_COLOUR, label="end")
    curves.set_ylim(0, 1)
    curves.set_ylabel("probability")
    curves.legend(loc="lower right", bbox_to_anchor=(1, 1), ncol=2, frameon=False)
    bars = figure.add_subplot(grid[1, 0], sharex=curves)
    draw_time_axis(bars, seconds, proposals[:10], truth)
    for axes in (curves, bars):
        for first, last, _ in truth:
            axes.axvspan(first, last, color=TRUTH_COLOUR, alpha=0.12, linewidth=0, zorder=0)
    square = figure.add_subplot(grid[:, 1])
    draw_confidence(figure, square, seconds, confidence_map, truth)
    return figure


def draw_time_axis(axes, seconds, proposals, truth):
    """Ground truth above, proposals [n, 3] (score, xmin, xmax) below it in order, on an axis of seconds."""
    lanes = _lanes(truth, seconds)
    height = max(lanes, default=-1) + 1
    for (first, last, label), lane in zip(truth, lanes):
        axes.barh(lane - height, last - first, left=first, height=0.8, color=TRUTH_COLOUR)
        if _extent(first, last, label, seconds)[0] == first:
            axes.annotate(" " + label, (first, lane - height), va="center", fontsize=8)
        else:
            axes.annotate(label + " ", (last, lane - height), va="center", ha="right", fontsize=8)
    for rank, (score, xmin, xmax) in enumerate(proposals):
        axes.barh(rank, (xmax - xmin) * seconds, left=xmin * seconds, height=0.8, color=PROPOSAL_COLOUR)
        axes.annotate(" %.3f" % score, (xmax * seconds, rank), va="center", fontsize=8)
    axes.set_yticks(list(range(-height, len(proposals))))
    axes.set_yticklabels(["truth"] * height + ["%d" % (rank + 1) for rank in range(len(proposals))])
    axes.set_ylabel("proposals and their scores")
    axes.set_ylim(len(proposals) - 0.4, -height - 0.6)
    axes.set_xlim(0, seconds * 1.08)        # room for the score of a proposal that ends with the video
    axes.set_xlabel("seconds")


def _lanes(truth, seconds):
    """A row for each action, the first in which neither it nor its label meets an earlier one."""
    free_from, lanes = [], []
    for action in truth:
        begin, end = _extent(*action, seconds)
        lane = next((lane for lane, free in enumerate(free_from) if free <= begin), len(free_from))
        free_from[lane:lane + 1] = [end]
        lanes.append(lane)
    return lanes


def _extent(first, last, label, seconds):
    """What an action and its label take: the label begins with the action, or ends with it where the axis does."""
    width = (len(label) + 2) * 0.011 * seconds
    if first + width > seconds:
        return min(first, last - width), last
    return first, max(last, first + width)


def draw_confidence(figure, axes, seconds, confidence_map, truth):
    """Confidence (classification times regression) of each pair of start and end; annotated actions as circles."""
    confidence = confidence_map[0] * confidence_map[1]              # [start, end]
    above = np.tri(len(confidence), dtype=bool).T                   # start <= end
    image = axes.imshow(np.ma.masked_where(~above, confidence).T, origin="lower", extent=(0, seconds, 0, seconds),
                        vmin=0, cmap="viridis", interpolation="nearest")
    for first, last, _ in truth:
        axes.plot(first, last, "o", markersize=10, markerfacecolor="none", markeredgecolor="k", markeredgewidth=3.5,
                  clip_on=False)
        axes.plot(first, last, "o", markersize=10, markerfacecolor="none", markeredgecolor="w", markeredgewidth=1.5,
                  clip_on=False)
    axes.set_xlim(0, seconds)
    axes.set_ylim(0, seconds)
    axes.set_xlabel("start (seconds)")
    axes.set_ylabel("end (seconds)")
    figure.colorbar(image, ax=axes, shrink=0.7,
                    label="confidence%s" % (", circles: ground truth" if len(truth) else ""))
