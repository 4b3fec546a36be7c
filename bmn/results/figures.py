"""Figures. Each has a canvas of its own, so that no global state of matplotlib changes or matters.

matplotlib is imported when the first figure is made, and not by programs that draw nothing.
"""
import contextlib
import os
import sys
import unicodedata
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from bmn.errors import UserError
from bmn.files import replacing
from bmn.results.fonts import all_letters
from bmn.values import counted

START_COLOUR, END_COLOUR, TRUTH_COLOUR, PROPOSAL_COLOUR = "#0072b2", "#d55e00", "#009e73", "#8da0b8"
SMALL = (6.4, 4.4)      # inches; a figure of this size is readable on a phone
WIDE = (10, 5)          # of a long video, in the whole width of a page
# Style of the recall curves; the colours are those of tIoU 0.5, 0.6, ..., 0.9 in order.
REFERENCE = {"colours": ("r", "yellow", "b", "c", "m"), "size": (12, 8), "font": 14, "width": 4, "top": 1}
REPORT = {"colours": ("#fde725", "#5ec962", "#21918c", "#3b528b", "#440154"), "size": SMALL, "font": 11, "width": 2,
          "top": 1.02}


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


def new_figure(size: Tuple[float, float]) -> Any:
    """An empty matplotlib Figure; ``size`` is (width, height) in inches."""
    canvas = _canvas()
    from matplotlib.figure import Figure
    figure = Figure(figsize=size, constrained_layout=True)
    canvas(figure)
    return figure


def recall_curve(average_nr_proposals: np.ndarray, average_recall: np.ndarray, recall: np.ndarray,
                 tiou_thresholds: np.ndarray, style: dict = REFERENCE) -> Any:
    """Recall against the average number of proposals, by default as the reference draws it.

    Args:
        average_nr_proposals, average_recall: [100].
        recall: [H, 100], at each of the thresholds.
        tiou_thresholds: [H].
        style: REFERENCE or REPORT.
    """
    figure = new_figure(style["size"])
    axes = figure.add_subplot(1, 1, 1)
    axes.plot(average_nr_proposals, average_recall, color="k", linewidth=style["width"],
              label="tiou = %.4g:%.4g:%.4g, area=%.2f" % (
                  tiou_thresholds[0], (tiou_thresholds[-1] - tiou_thresholds[0]) / max(len(tiou_thresholds) - 1, 1),
                  tiou_thresholds[-1], _cut(area(average_nr_proposals, average_recall))))
    for index, threshold in enumerate(tiou_thresholds[::2]):
        axes.plot(average_nr_proposals, recall[2 * index], color=style["colours"][index % 5], linewidth=style["width"],
                  linestyle="--", label="tiou=[%.4g], area=%.2f"
                  % (threshold, _cut(area(average_nr_proposals, recall[2 * index]))))
    axes.legend(loc="best", fontsize=style["font"] - 2)
    axes.set_ylabel("Average Recall", fontsize=style["font"])
    axes.set_xlabel("Average Number of Proposals per Video", fontsize=style["font"])
    axes.grid(True, which="both")
    axes.set_ylim(0, style["top"])
    axes.tick_params(labelsize=style["font"])
    return figure


def _literal(text):
    """``text`` as matplotlib draws it: it would read a name like $x$ as a formula, and stop at a name of odd bytes."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("$", r"\$")


def _cut(number):
    return int(number * 100) / 100.         # like the reference, which does not round


def recall_by_tiou(recall: np.ndarray, tiou_thresholds: np.ndarray, numbers: Sequence[int] = (1, 5, 10, 100)) -> Any:
    """Recall [H, points] of the best ``numbers`` of proposals against tIoU [H]."""
    figure = new_figure(SMALL)
    axes = figure.add_subplot(1, 1, 1)
    for number, colour in zip(reversed(numbers), ("#440154", "#31688e", "#35b779", "#b5a41c", "#d55e00")):
        axes.plot(tiou_thresholds, recall[:, number - 1], "o-", color=colour, markersize=4, linewidth=2,
                  label=counted(number, "proposal"))
    axes.legend(fontsize=9)
    axes.set_xlabel("tIoU", fontsize=11)
    axes.set_ylabel("Recall", fontsize=11)
    axes.set_ylim(0, REPORT["top"])
    axes.grid(True, alpha=0.4)
    return figure


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
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelsize=9)
        axes.grid(True, alpha=0.4)
        if number == 1:
            axes.legend(fontsize=9, frameon=False)
        if number > 2:
            axes.set_xlabel("epoch", fontsize=10)
    return figure


def prediction(title: str, seconds: float, start: np.ndarray, end: np.ndarray, confidence_map: np.ndarray,
               proposals: np.ndarray, truth: Sequence[tuple] = ()) -> Any:
    """The network's outputs for one video: boundary probabilities, best proposals and the confidence of every pair.

    Args:
        title: of the figure.
        seconds: length of the time axis.
        start, end: [T], probability at each position.
        confidence_map: [2, T, T], channel 0 regression, 1 classification, at [start, end]; cells with start > end are
            not shown. None, of a video that was cut into windows: the curves and the time axis alone.
        proposals: [n, 3] (score, xmin, xmax as fractions), best first; the first ten are drawn.
        truth: (start, end, label) of each annotated action, in seconds, sorted by start.
    """
    if confidence_map is None:
        figure = boundaries(seconds, start, end, proposals, truth, (13, 6))
        figure.suptitle(_literal(title))
        return figure
    figure = new_figure((13, 6))
    grid = figure.add_gridspec(1, 2, width_ratios=(1.35, 1))
    figure.suptitle(_literal(title))
    draw_boundaries_and_time_axis(figure, grid[0], seconds, start, end, proposals, truth)
    draw_confidence(figure, grid[1], seconds, confidence_map, truth)
    return figure


def boundaries(seconds: float, start: np.ndarray, end: np.ndarray, proposals: np.ndarray, truth: Sequence[tuple] = (),
               size: Tuple[float, float] = (6.4, 5.4)) -> Any:
    """Boundary probabilities and time axis alone; arguments as in :func:`prediction`, ``size`` in inches."""
    figure = new_figure(size)
    draw_boundaries_and_time_axis(figure, figure.add_gridspec(1, 1)[0], seconds, start, end, proposals, truth)
    return figure


def prediction_in_two(seconds: float, start: np.ndarray, end: np.ndarray, confidence_map: np.ndarray,
                      proposals: np.ndarray, truth: Sequence[tuple] = ()) -> Tuple[Any, Any]:
    """The same as :func:`prediction` in two figures (time axis, confidence), which a page can arrange by its width."""
    time_axis, confidence = boundaries(seconds, start, end, proposals, truth), new_figure((6.4, 5.4))
    draw_confidence(confidence, confidence.add_gridspec(1, 1)[0], seconds, confidence_map, truth)
    return time_axis, confidence


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


def time_axis(seconds: float, proposals: np.ndarray, truth: Sequence[tuple]) -> Any:
    """Ground truth and best proposals of a video of which there are no maps; arguments as in :func:`prediction`."""
    figure = new_figure((6.4, 3.6))
    draw_time_axis(figure.add_subplot(1, 1, 1), seconds, proposals[:10], truth)
    return figure


def draw_boundaries_and_time_axis(figure: Any, grid_cell: Any, seconds: float, start: np.ndarray, end: np.ndarray,
                                  proposals: np.ndarray, truth: Sequence[tuple]) -> None:
    """Draw the boundary probabilities above the time axis, with annotated actions shaded.

    ``grid_cell`` is a matplotlib SubplotSpec; the other arguments are those of :func:`prediction`.
    """
    rows = grid_cell.subgridspec(2, 1, height_ratios=(1, 1.3))
    curves = figure.add_subplot(rows[0])
    at = np.arange(len(start)) * seconds / len(start)
    curves.plot(at, start, color=START_COLOUR, label="start")
    curves.plot(at, end, color=END_COLOUR, label="end")
    curves.set_ylim(0, 1)
    curves.set_ylabel("probability")
    curves.legend(loc="lower right", bbox_to_anchor=(1, 1), ncol=2, frameon=False)
    bars = figure.add_subplot(rows[1], sharex=curves)
    draw_time_axis(bars, seconds, proposals[:10], truth)
    for axes in (curves, bars):
        for first, last, _ in truth:
            axes.axvspan(first, last, color=TRUTH_COLOUR, alpha=0.12, linewidth=0, zorder=0)


def draw_time_axis(axes: Any, seconds: float, proposals: np.ndarray, truth: Sequence[tuple]) -> None:
    """Draw the ground truth, and below it the proposals [n, 3] (score, xmin, xmax) in order, on an axis of seconds."""
    lanes = _lanes(truth, seconds)
    height = max(lanes, default=-1) + 1
    for (first, last, label), lane in zip(truth, lanes):
        axes.barh(lane - height, last - first, left=first, height=0.8, color=TRUTH_COLOUR)
        if _extent(first, last, label, seconds)[0] == first:
            axes.annotate(" " + _literal(label), (first, lane - height), va="center", fontsize=8)
        else:
            axes.annotate(_literal(label) + " ", (last, lane - height), va="center", ha="right", fontsize=8)
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
    """The row of each action: the first row in which it and its label do not overlap an earlier action."""
    free_from, lanes = [], []
    for action in truth:
        begin, end = _extent(*action, seconds)
        lane = next((lane for lane, free in enumerate(free_from) if free <= begin), len(free_from))
        free_from[lane:lane + 1] = [end]
        lanes.append(lane)
    return lanes


def _extent(first, last, label, seconds):
    """(begin, end) in seconds of an action and its label. Near the end of the axis, the label ends with the action."""
    letters = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in label)
    width = (letters + 2) * 0.011 * seconds
    if first + width > seconds:
        return min(first, last - width), last
    return first, max(last, first + width)


def draw_confidence(figure: Any, grid_cell: Any, seconds: float, confidence_map: np.ndarray,
                    truth: Sequence[tuple]) -> None:
    """Draw the confidence (classification times regression) of each pair, with annotated actions as circles.

    ``grid_cell`` is a matplotlib SubplotSpec; the other arguments are those of :func:`prediction`.
    """
    axes = figure.add_subplot(grid_cell)
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
