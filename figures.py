"""Figures: drawn on canvases of their own, no global state of matplotlib is touched."""
import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from files import replacing

CURVE_COLOURS = ("k", "r", "yellow", "b", "c", "m")


def _area(x, y):
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
              % _area(average_nr_proposals, average_recall))
    for index, threshold in enumerate(tiou_thresholds[::2]):
        axes.plot(average_nr_proposals, recall[2 * index], color=CURVE_COLOURS[index % 5 + 1], linewidth=4,
                  linestyle="--", label="tiou=[%s], area=%.2f"
                  % (threshold, _area(average_nr_proposals, recall[2 * index])))
    axes.legend(loc="best")
    axes.set_ylabel("Average Recall", fontsize=14)
    axes.set_xlabel("Average Number of Proposals per Video", fontsize=14)
    axes.grid(True, which="both")
    axes.set_ylim(0, 1.0)
    axes.tick_params(labelsize=14)
    return figure
