"""Figures of one video: boundary probabilities, annotated actions and proposals on a time axis, confidence as a map.

A video may have hundreds of actions. All of them are drawn, but only as many labels as can be read.
"""
import functools
import unicodedata
import warnings
from typing import Any, List, Sequence, Tuple

import numpy as np

from bmn.results.figures import END_COLOUR, SMALL, START_COLOUR, literal, new_figure

TRUTH_COLOUR, PROPOSAL_COLOUR = "#009e73", "#8da0b8"
TRUTH_BAR = "#a6dcc9"       # light, because labels are written on it in black
WIDE = (10, 5)              # inches; of a long video, in the whole width of a page
DRAWN = 10                  # best proposals
LANES = 5                   # rows of actions with labels; those without room for a label share one more
FONT = 8                    # points
WIDER = 1.05        # times the width that is measured: so wide are letters on some screens
GAP = 2.0                   # points between two actions of a lane
POINTS = 1000               # positions of a curve; of more, the lowest and the highest of every few are drawn
RINGS = 30                  # actions on a map; more would hide it, and are small squares
BARS_LEFT = 84      # points left of a time axis: "and 9999 more", and the name of the axis
SCALES = (0.1, 0.25, 0.5, 1.0)      # upper ends of the scale of colours


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
        figure, grid_cell = _with_margins((13, 6), BARS_LEFT, 44)
        draw_boundaries_and_time_axis(figure, grid_cell, seconds, start, end, proposals, truth)
        figure.suptitle(literal(title))
        return figure
    figure = new_figure((13, 6))
    grid = figure.add_gridspec(1, 2, width_ratios=(1.35, 1))
    figure.suptitle(literal(title))
    draw_boundaries_and_time_axis(figure, grid[0], seconds, start, end, proposals, truth)
    draw_confidence(figure, grid[1], seconds, confidence_map, truth)
    return figure


def boundaries(seconds: float, start: np.ndarray, end: np.ndarray, proposals: np.ndarray, truth: Sequence[tuple] = (),
               size: Tuple[float, float] = (6.4, 5.4)) -> Any:
    """Boundary probabilities and time axis alone; arguments as in :func:`prediction`, ``size`` in inches."""
    figure, grid_cell = _with_margins(size, BARS_LEFT, 24)
    draw_boundaries_and_time_axis(figure, grid_cell, seconds, start, end, proposals, truth)
    return figure


def prediction_in_two(seconds: float, start: np.ndarray, end: np.ndarray, confidence_map: np.ndarray,
                      proposals: np.ndarray, truth: Sequence[tuple] = ()) -> Tuple[Any, Any]:
    """The same as :func:`prediction` in two figures (time axis, confidence), which a page can arrange by its width."""
    time_axis = boundaries(seconds, start, end, proposals, truth)
    confidence, grid_cell = _with_margins((6.4, 5.4), 60, 8)
    draw_confidence(confidence, grid_cell, seconds, confidence_map, truth)
    return time_axis, confidence


def segments(seconds: float, proposals: np.ndarray, truth: Sequence[tuple]) -> Any:
    """Ground truth and best proposals of a video of which there are no maps; arguments as in :func:`prediction`."""
    figure, grid_cell = _with_margins((SMALL[0], 3.6), BARS_LEFT, 4)
    draw_time_axis(figure.add_subplot(grid_cell), seconds, proposals[:DRAWN], truth)
    return figure


def _with_margins(size, left, top):
    """(figure, cell of a grid) with margins in points, because what stands in them is known; ``size`` in inches."""
    figure, (width, height) = new_figure(size, laid_out=False), np.multiply(size, 72)
    return figure, figure.add_gridspec(1, 1, left=left / width, right=1 - 4 / width, bottom=34 / height,
                                       top=1 - top / height)[0]


def draw_boundaries_and_time_axis(figure: Any, grid_cell: Any, seconds: float, start: np.ndarray, end: np.ndarray,
                                  proposals: np.ndarray, truth: Sequence[tuple]) -> None:
    """Draw the boundary probabilities above the time axis, with annotated actions shaded.

    ``grid_cell`` is a matplotlib SubplotSpec; the other arguments are those of :func:`prediction`.
    """
    rows = grid_cell.subgridspec(2, 1, height_ratios=(1, 1.6), hspace=0.08)
    curves = figure.add_subplot(rows[0])
    at = np.arange(len(start)) * seconds / len(start)
    for values, colour, name in ((start, START_COLOUR, "start"), (end, END_COLOUR, "end")):
        curves.plot(*_drawable(at, values), color=colour, linewidth=min(1.5, 150.0 / len(start) + 0.6), label=name)
    curves.set_ylim(0, 1)
    curves.set_ylabel("probability")
    curves.legend(loc="lower right", bbox_to_anchor=(1, 1), ncol=2, frameon=False, borderaxespad=0.2)
    curves.tick_params(labelbottom=False)
    bars = figure.add_subplot(rows[1], sharex=curves)
    draw_time_axis(bars, seconds, proposals[:DRAWN], truth)
    for axes in (curves, bars):
        _draw_bars(axes, [(first, last, 0.5) for first, last in _joined(truth)], 1, color=TRUTH_COLOUR, alpha=0.12,
                   linewidth=0, zorder=0, transform=axes.get_xaxis_transform())


def _joined(truth):
    """[[first, last]] of what the actions cover together, sorted by first as they are."""
    covered = []
    for first, last, _ in truth:
        if covered and first <= covered[-1][1]:
            covered[-1][1] = max(covered[-1][1], last)
        else:
            covered.append([first, last])
    return covered


def _drawable(at, values):
    """(at, values) of a curve, of many positions the lowest and the highest of every few: so no peak is lost."""
    few = -(-len(values) // (POINTS // 2))
    if len(values) <= POINTS:
        return at, values
    whole = len(values) // few * few
    table = np.asarray(values)[:whole].reshape(-1, few)
    both = np.sort([table.argmin(axis=1), table.argmax(axis=1)], axis=0)           # [2, parts], in order of time
    chosen = np.append((both + np.arange(len(table)) * few).T.ravel(), np.arange(whole, len(values)))
    return at[chosen], np.asarray(values)[chosen]


def draw_time_axis(axes: Any, seconds: float, proposals: np.ndarray, truth: Sequence[tuple]) -> None:
    """Draw the ground truth, and below it the proposals [n, 3] (score, xmin, xmax) in order, on an axis of seconds.

    An action has a label where there is room. Those for which there is none share a row, which tells their number.
    """
    limit = seconds * 1.08          # room for the score of a proposal that ends with the video
    point = WIDER * limit / (axes.get_position().width * axes.figure.get_figwidth() * 72)       # seconds in a point
    places = _places(truth, limit, point)
    lanes, without_label = max([lane + 1 for lane, _, _ in places if lane is not None], default=0), []
    height = lanes + any(lane is None for lane, _, _ in places)
    for (first, last, _), (lane, begin, text) in zip(truth, places):
        if lane is None:
            without_label.append((first, last, ""))
        elif text:
            _write(axes, begin + 2 * point, lane - height, text)
    _draw_bars(axes, [(first, last, lane - height) for (first, last, _), (lane, _, _) in zip(truth, places)
                      if lane is not None], 0.8, facecolor=TRUTH_BAR, edgecolor=TRUTH_COLOUR, linewidth=0.6)
    _draw_bars(axes, [(first, last, -1) for first, last in _joined(without_label)], 0.6, facecolor=TRUTH_BAR,
               edgecolor=TRUTH_COLOUR, linewidth=0.6)
    _draw_bars(axes, [(xmin * seconds, xmax * seconds, rank) for rank, (_, xmin, xmax) in enumerate(proposals)], 0.8,
               color=PROPOSAL_COLOUR, linewidth=0.6)
    for rank, (score, _, xmax) in enumerate(proposals):
        _write(axes, xmax * seconds + 3 * point, rank, "%.3f" % score)
    ticks = [((lanes - 1) / 2.0 - height, "truth")] * (lanes > 0)
    ticks += [(-1, "and %d more" % len(without_label))] * (height > lanes)
    ticks += [(rank, "%d" % (rank + 1)) for rank in range(len(proposals))]
    axes.set_yticks([at for at, _ in ticks])
    axes.set_yticklabels([text for _, text in ticks], fontsize=FONT)
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel("proposals and their scores")
    axes.set_ylim(len(proposals) - 0.4, -height - 0.6)
    axes.set_xlim(0, limit)
    axes.set_xlabel("seconds")


def _places(truth, limit, point):
    """(lane, where the label begins, label) of each action; the lane is None where none has room for both.

    A label lies on its action, else after it, else before it, whatever the axis has room for; else it ends with the
    axis at ``limit``. One that is wider than the axis keeps its beginning.
    """
    free_from, places = [-np.inf] * LANES, []
    for first, last, label in truth:
        text, width = _cut(" ".join(label.split()), limit / point - 6)
        room, seen = (width + 4) * point, max(first, 0)
        begin = next((begin for begin, fits in ((seen, room <= last - seen), (last, last + room <= limit),
                                                (seen - room, seen >= room)) if fits), limit - room)
        lane = next((lane for lane, free in enumerate(free_from) if free <= min(first, begin)), None)
        if lane is not None:
            free_from[lane] = max(last, begin + room) + GAP * point
        places.append((lane, begin, text))
    return places


@functools.lru_cache(maxsize=4096)
def _cut(label, room):
    """(text, width) of a label, in points; what is wider than ``room`` is cut."""
    width = _width(label)
    if width <= room:
        return label, width
    kept = min(len(label), int(room))           # few letters are narrower than a point
    while kept and _width(label[:kept] + "\u2026") > room:
        kept -= 1
    return label[:kept].rstrip() + "\u2026", _width(label[:kept].rstrip() + "\u2026")


def _width(text):
    """Width in points, in matplotlib's own font, which may lack wide letters: they are as wide as they are high."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    narrow = "".join(letter for letter in text if unicodedata.east_asian_width(letter) not in "WF")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return wide * FONT + text_to_path.get_text_width_height_descent(
            narrow.encode("utf-8", "replace").decode("utf-8"), FontProperties(size=FONT), False)[0]


def _write(axes, second, row, text):
    """A text that begins at a second and lies in a row. It is no part of the layout, which would take long."""
    axes.text(second, row, literal(text), va="center", fontsize=FONT, clip_on=True).set_in_layout(False)


def _draw_bars(axes, bars: List[Tuple[float, float, float]], height: float, **style: Any) -> None:
    """Draw bars (first, last, middle of the height) as one path, which takes a tenth of the room of many patches."""
    if not bars:
        return
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path
    first, last, middle = np.array(bars, np.float64).T
    low, high = middle - height / 2.0, middle + height / 2.0
    corners = np.stack([first, low, last, low, last, high, first, high, first, low], axis=1)       # [bars, 10]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(bars)
    axes.add_artist(PathPatch(Path(corners.reshape(-1, 2), codes), **style))


def draw_confidence(figure: Any, grid_cell: Any, seconds: float, confidence_map: np.ndarray,
                    truth: Sequence[tuple]) -> None:
    """Draw the confidence (classification times regression) of each pair, with annotated actions as circles or squares.

    The scale of colours goes from 0 to one of SCALES, so that a map without differences looks like one. ``grid_cell``
    is a matplotlib SubplotSpec; the other arguments are those of :func:`prediction`.
    """
    axes = figure.add_subplot(grid_cell)
    confidence = confidence_map[0] * confidence_map[1]              # [start, end]
    above = np.tri(len(confidence), dtype=bool).T                   # start <= end
    highest = float(confidence[above].max())
    image = axes.imshow(np.ma.masked_where(~above, confidence).T, origin="lower", extent=(0, seconds, 0, seconds),
                        vmin=0, vmax=next((scale for scale in SCALES if highest <= scale), highest), cmap="viridis",
                        aspect="auto", interpolation="none")           # none: a cell is a pixel of the SVG's picture
    if len(truth):
        at = np.clip([one[:2] for one in truth], 0, seconds).T
        if len(truth) <= RINGS:
            for colour, width in (("k", 3.5), ("w", 1.5)):
                axes.plot(*at, "o", markersize=10, markerfacecolor="none", markeredgecolor=colour,
                          markeredgewidth=width)
        else:
            half = 0.006 * seconds
            _draw_bars(axes, [(first - half, first + half, last) for first, last in at.T], 2 * half, facecolor="w",
                       edgecolor="k", linewidth=0.8, zorder=2)
    axes.set_xlim(-0.03 * seconds, 1.03 * seconds)         # so that a circle at the edge is whole
    axes.set_ylim(-0.03 * seconds, 1.03 * seconds)
    axes.set_xlabel("start (seconds)")
    axes.set_ylabel("end (seconds)")
    marks = "" if not len(truth) else ", circles: ground truth" if len(truth) <= RINGS else ", squares: ground truth"
    figure.colorbar(image, ax=axes, shrink=0.7, label="confidence" + marks)
