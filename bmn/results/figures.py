"""Figures, and the curves among them. Each has a canvas of its own: no global state of matplotlib changes or matters.

matplotlib is imported when the first figure is made, and not by programs that draw nothing.
"""
import contextlib
import itertools
import os
import sys
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from bmn.errors import UserError
from bmn.files import replacing
from bmn.results.fonts import all_letters

START_COLOUR, END_COLOUR = "#0072b2", "#d55e00"
SMALL = (6.4, 4.4)      # inches; a figure of this size is readable on a phone
# Colours of the recall curves at tIoU 0.5, 0.6, ..., 1.0 in order. The reference has the first five.
REFERENCE = ("r", "yellow", "b", "c", "m", "g")
REPORT = ("#d9b310", "#7ad151", "#22a884", "#2a788e", "#414487", "#440154")
TOP = 1.02              # of an axis of recall, so that a curve at 1 is seen


def area(x: np.ndarray, y: np.ndarray) -> float:
    """Area under a curve by the trapezoidal rule; x and y are [points]."""
    return (np.diff(x) * (y[1:] + y[:-1]) / 2.0).sum()


def save(figure: Any, path: str) -> None:
    """Write a figure; the ending of ``path`` gives the format.

    Raises:
        UserError: the file cannot be written, or there is no such format.
    """
    form = picture_format(path)
    with replacing(path) as temporary, all_letters(figure):
        figure.savefig(temporary, format=form)


def picture_format(path: str) -> str:
    """The format that the ending of ``path`` means, "png" where it has none.

    Raises:
        UserError: there is no such format.
    """
    form = os.path.splitext(path)[1][1:].lower() or "png"
    if form not in _canvas().get_supported_filetypes():
        raise UserError("%s: there is no picture format '%s'; use .jpg, .png, .pdf or .svg" % (path, form))
    return form


def _canvas():
    """matplotlib's FigureCanvasAgg.

    A notebook leaves MPLBACKEND in the environment of the programs that it starts, and matplotlib cannot be imported
    where there is no backend of that name. No figure here needs it, so it is set afterwards, where it can be.
    """
    if "matplotlib" not in sys.modules:
        backend = os.environ.pop("MPLBACKEND", "")
        import matplotlib
        if backend:
            os.environ["MPLBACKEND"] = backend
            with contextlib.suppress(ValueError):
                matplotlib.rcParams["backend"] = backend
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    return FigureCanvasAgg


def literal(text: str) -> str:
    """``text`` as matplotlib draws it: it would read a name like $x$ as a formula, and stop at a name of odd bytes."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("$", r"\$")


def new_figure(size: Tuple[float, float], laid_out: bool = True) -> Any:
    """An empty matplotlib Figure; ``size`` is (width, height) in inches.

    matplotlib finds the margins where it is ``laid_out``, which takes as long as to draw it twice.
    """
    canvas = _canvas()
    from matplotlib.figure import Figure
    figure = Figure(figsize=size, constrained_layout=laid_out)
    canvas(figure)
    return figure


def recall_curve(average_nr_proposals: np.ndarray, average_recall: np.ndarray, recall: np.ndarray,
                 tiou_thresholds: np.ndarray) -> Any:
    """Recall against the average number of proposals, as the reference draws it.

    The areas in the legend are in percent of the largest, 100 at most. The reference has no other, because its curves
    end at 100 proposals.

    Args:
        average_nr_proposals, average_recall: [points].
        recall: [H, points], at each of the thresholds.
        tiou_thresholds: [H].
    """
    figure = new_figure((12, 8))
    axes = figure.add_subplot(1, 1, 1)
    percent = 100.0 / average_nr_proposals[-1]
    curves = [("tiou = " + _range(tiou_thresholds), average_recall, "k", "-")]
    curves += [("tiou=[%.4g]" % threshold, recall[2 * index], colour, "--")
               for index, (threshold, colour) in enumerate(zip(tiou_thresholds[::2], itertools.cycle(REFERENCE)))]
    for name, values, colour, line in curves:
        axes.plot(average_nr_proposals, values, line, color=colour, linewidth=4,
                  label="%s, area=%.2f" % (name, _cut(area(average_nr_proposals, values) * percent)))
    axes.legend(loc="best", fontsize=12)
    axes.set_ylabel("Average Recall", fontsize=14)
    axes.set_xlabel("Average Number of Proposals per Video", fontsize=14)
    axes.grid(True, which="both")
    axes.set_ylim(0, 1)
    axes.tick_params(labelsize=14)
    return figure


def recall_by_number(average_nr_proposals: np.ndarray, average_recall: np.ndarray, recall: np.ndarray,
                     tiou_thresholds: np.ndarray) -> Any:
    """The curves of :func:`recall_curve` for a page: the legend, with each AUC in percent, hides none of them."""
    whole = 100.0 / average_nr_proposals[-1]
    curves = [("mean over tIoU " + _range(tiou_thresholds), average_recall, "k", "-")]
    curves += [("tIoU %.4g" % threshold, recall[2 * index], colour, "--")
               for index, (threshold, colour) in enumerate(zip(tiou_thresholds[::2], itertools.cycle(REPORT)))]
    return _recall([("%s: %.1f" % (name, whole * area(average_nr_proposals, values)), values, colour, line)
                    for name, values, colour, line in curves],
                   average_nr_proposals, "average number of proposals per video", "AUC in percent", 2)


def recall_by_tiou(recall: np.ndarray, tiou_thresholds: np.ndarray, numbers: Sequence[int] = (1, 5, 10, 100)) -> Any:
    """Recall [H, points] of the best ``numbers`` of proposals against tIoU [H]."""
    return _recall([("%d" % number, recall[:, number - 1], colour, "o-")
                    for number, colour in zip(reversed(numbers), REPORT[::-1])],
                   tiou_thresholds, "tIoU", "number of proposals", len(numbers))


def recall_of_several(named: Dict[str, np.ndarray], at: np.ndarray, xlabel: str) -> Any:
    """Curves of recall of several results, {name: [points]}, against ``at`` [points]."""
    colours = itertools.cycle((START_COLOUR, END_COLOUR, "k"))
    return _recall([(literal(name), values, colour, "-") for (name, values), colour in zip(named.items(), colours)], at,
                   xlabel, "", 1)


def _recall(curves, at, xlabel, title, columns):
    """Curves [(name, [points], colour, line)] of recall on one pair of axes, with the legend above them."""
    figure = new_figure(SMALL)
    axes = figure.add_subplot(1, 1, 1)
    for name, values, colour, line in curves:
        axes.plot(at, values, line, color=colour, linewidth=2, markersize=4, label=name)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncol=columns, fontsize=9, frameon=False, title=title,
                title_fontsize=9)
    axes.set_xlabel(xlabel, fontsize=11)
    axes.set_ylabel("recall", fontsize=11)
    axes.set_ylim(0, TOP)
    axes.grid(True, alpha=0.4)
    return figure


def _range(values):
    return "%.4g:%.4g:%.4g" % (values[0], (values[-1] - values[0]) / max(len(values) - 1, 1), values[-1])


def _cut(number):
    return int(number * 100) / 100.         # like the reference, which does not round


def training_curve(epochs: List[dict]) -> Any:
    """Losses of a run; ``epochs`` are the objects of metrics.jsonl, one for each epoch."""
    figure = new_figure(SMALL)
    titles = {"total": "total", "tem": "TEM", "pem_reg": "PEM regression", "pem_cls": "PEM classification"}
    numbers = [one["epoch"] for one in epochs]
    for number, (name, title) in enumerate(titles.items(), 1):
        axes = figure.add_subplot(2, 2, number)
        for subset, colour in (("train", START_COLOUR), ("validation", END_COLOUR)):
            axes.plot(numbers, [one[subset][name] for one in epochs], "o-", color=colour, markersize=3.5, label=subset)
        axes.set_title(title, fontsize=10)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)      # a single epoch would have an axis of its fractions
        axes.tick_params(labelsize=9)
        axes.grid(True, alpha=0.4)
        if number == 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.12), ncol=2, fontsize=9, frameon=False)
        if number > 2:
            axes.set_xlabel("epoch", fontsize=10)
    return figure


def lengths(subsets: Dict[str, Dict[str, Any]]) -> Any:
    """Distributions of the lengths of videos and actions, and of actions in relation to their video.

    Args:
        subsets: {subset: {name: video}}; a video has seconds and actions, [(start, end, label)] in seconds.
    """
    figure = new_figure((12, 3.8))
    panels = [("length of a video (seconds)", lambda video: [video.seconds]),
              ("length of an action (seconds)", lambda video: [end - start for start, end, _ in video.actions]),
              ("length of an action (percent of its video)",
               lambda video: [100 * (end - start) / video.seconds for start, end, _ in video.actions])]
    for number, (title, values_of) in enumerate(panels, 1):
        axes = figure.add_subplot(1, 3, number)
        values = {subset: np.array([value for video in videos.values() for value in values_of(video) if value > 0])
                  for subset, videos in subsets.items()}
        everything = np.concatenate(list(values.values()))
        if len(everything):
            edges = np.geomspace(everything.min(), max(everything.max(), everything.min() * 1.01), 41)
            for (subset, its_values), colour in zip(values.items(), (START_COLOUR, END_COLOUR)):
                if len(its_values):
                    axes.hist(its_values, edges, histtype="step", linewidth=1.8, color=colour, label=subset,
                              weights=np.full(len(its_values), 100.0 / len(its_values)))
            axes.set_xscale("log")
            axes.legend(fontsize=9, frameon=False)
        axes.set_xlabel(title)
        axes.set_ylabel("percent" if number == 1 else "")
        axes.grid(True, alpha=0.4)
    return figure
