"""Figures show their data, are saved in every format, and leave matplotlib's global state alone."""
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bmn.data.annotations import Video
from bmn.errors import UserError
from bmn.results import figures

THRESHOLDS = np.linspace(0.5, 0.95, 10)


def curve(rng):
    recall = np.sort(rng.rand(10, 100), axis=1)
    return np.arange(1.0, 101), recall.mean(axis=0), recall


def test_recall_curve_has_the_labels_of_the_reference(rng):
    numbers, mean, recall = curve(rng)
    axes, = figures.recall_curve(numbers, mean, recall, THRESHOLDS).axes
    lines = axes.get_lines()
    np.testing.assert_array_equal(lines[0].get_ydata(), mean)
    for index, line in enumerate(lines[1:]):
        np.testing.assert_array_equal(line.get_ydata(), recall[2 * index])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    area = ((mean[1:] + mean[:-1]) / 2).sum()
    assert labels[0] == "tiou = 0.5:0.05:0.95, area=%.2f" % (int(area * 100) / 100)
    assert [label.split(",")[0] for label in labels[1:]] == ["tiou=[0.%d]" % tenth for tenth in range(5, 10)]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Average Number of Proposals per Video", "Average Recall")


def test_areas_of_the_reference_are_unchanged_and_others_are_in_percent(rng):
    recall = np.sort(rng.rand(11, 1000), axis=1)
    numbers, mean = np.arange(1.0, 1001), recall.mean(axis=0)
    axes, = figures.recall_curve(numbers, mean, recall, np.linspace(0.5, 1, 11)).axes
    areas = [float(text.get_text().split("area=")[1]) for text in axes.get_legend().get_texts()]
    expected = [100 * ((one[1:] + one[:-1]) / 2).sum() / 1000 for one in (mean, *recall[::2])]
    np.testing.assert_allclose(areas, expected, atol=0.0101)


@pytest.mark.parametrize("thresholds", [THRESHOLDS, np.linspace(0.5, 1, 11)])
def test_curves_of_a_page_have_colours_of_their_own_and_a_legend_that_hides_none(rng, thresholds):
    recall = np.sort(rng.rand(len(thresholds), 100), axis=1)
    numbers, mean = np.arange(1.0, 101), recall.mean(axis=0)
    for figure, title in ((figures.recall_by_number(numbers, mean, recall, thresholds), "AUC in percent"),
                          (figures.recall_by_tiou(recall, thresholds, (1, 2, 5, 10, 100)), "number of proposals"),
                          (figures.recall_of_several({"a": mean, "$b_{": recall[0]}, numbers, "number"), "")):
        axes, = figure.axes
        figure.canvas.draw()
        lines, legend = axes.get_lines(), axes.get_legend()
        assert len({line.get_color() for line in lines}) == len(lines) == len(legend.get_texts())
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        assert figure.bbox.y1 >= legend.get_window_extent().y1
        assert legend.get_title().get_text() == title
    texts = [text.get_text() for text in figures.recall_by_number(numbers, mean, recall, thresholds).axes[0]
             .get_legend().get_texts()]
    assert texts[0] == "mean over tIoU %g:0.05:%g: %.1f" % (
        thresholds[0], thresholds[-1], ((mean[1:] + mean[:-1]) / 2).sum())
    assert [text.split(":")[0] for text in texts[1:]] == ["tIoU %g" % threshold for threshold in thresholds[::2]]


def test_the_reference_has_a_colour_for_each_curve_too(rng):
    recall = np.sort(rng.rand(11, 100), axis=1)
    axes, = figures.recall_curve(np.arange(1.0, 101), recall.mean(axis=0), recall, np.linspace(0.5, 1, 11)).axes
    assert [line.get_color() for line in axes.get_lines()] == ["k", "r", "yellow", "b", "c", "m", "g"]


def test_recall_against_tiou(rng):
    recall = curve(rng)[2]
    axes, = figures.recall_by_tiou(recall, THRESHOLDS).axes
    for line, number in zip(axes.get_lines(), (100, 10, 5, 1)):
        np.testing.assert_array_equal(line.get_ydata(), recall[:, number - 1])


@pytest.mark.parametrize("first, count", [(0, 3), (0, 1), (7, 1), (3, 2), (0, 40)])
def test_training_curve(first, count):
    parts = ("total", "tem", "pem_reg", "pem_cls")
    numbers = np.arange(first, first + count)
    figure = figures.training_curve([
        {"epoch": epoch, "train": dict.fromkeys(parts, 3.0 - epoch), "validation": dict.fromkeys(parts, 4.0 - epoch)}
        for epoch in numbers.tolist()])
    figure.canvas.draw()
    assert len(figure.axes) == 4
    for axes in figure.axes:
        np.testing.assert_array_equal([line.get_ydata() for line in axes.get_lines()], [3.0 - numbers, 4.0 - numbers])
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]         # whole epochs, and at least one
        assert ticks and set(ticks) <= set(numbers) and low < first and numbers[-1] < high


@pytest.mark.parametrize("name", ["a.jpg", "b.png", "c.pdf", "d.svg", "e"])
def test_a_figure_is_saved_in_every_format(rng, tmp_path, name):
    path = str(tmp_path / "deep" / name)
    figures.save(figures.recall_curve(*curve(rng), THRESHOLDS), path)
    assert os.path.getsize(path) > 1000


def test_a_figure_that_cannot_be_saved_leaves_no_file(rng, tmp_path):
    with pytest.raises(UserError, match=r"\.xyz"):
        figures.save(figures.recall_curve(*curve(rng), THRESHOLDS), str(tmp_path / "a.xyz"))
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("backend", ["TkAgg", "module://matplotlib_inline.backend_inline", "no such backend"])
def test_global_state_is_left_alone(root, backend):
    """Neither pyplot nor the user's backend is used, so no display is needed, and pyplot would still get the backend.

    A notebook leaves the second one in the environment of the programs that it starts.
    """
    program = """
import os, sys; sys.path.insert(0, sys.argv[1])
import numpy as np
from bmn.results import figures
assert "matplotlib" not in sys.modules
figures.recall_by_tiou(np.ones((10, 100)), np.linspace(0.5, 0.95, 10)).canvas.draw()
import matplotlib
assert "matplotlib.pyplot" not in sys.modules
assert os.environ["MPLBACKEND"] == sys.argv[2]
if sys.argv[2] == "TkAgg":
    assert dict.__getitem__(matplotlib.rcParams, "backend").lower() == "tkagg"
"""
    subprocess.run([sys.executable, "-c", program, root, backend], check=True,
                   env=dict(os.environ, MPLBACKEND=backend))
    assert isinstance(figures.new_figure((1, 1)).canvas, FigureCanvasAgg)


def test_lengths_of_videos_and_actions_are_counted(rng):
    """Each curve is a distribution in percent; what has no length is left out, a subset without actions too."""
    videos = {"v_%d" % number: Video(seconds, seconds, seconds, [(1.0, 1.0 + length, "a"), (2.0, 2.0, "b")])
              for number, (seconds, length) in enumerate(rng.uniform(5, 500, (30, 2)).tolist())}
    empty = {"v_x": Video(7.0, 7.0, 7.0)}
    figure = figures.lengths({"train": videos, "validation": empty})
    assert [axes.get_xlabel().split(" (")[0] for axes in figure.axes] == [
        "length of a video", "length of an action", "length of an action"]
    drawn = [[patch.get_xy()[:, 1] for patch in axes.patches] for axes in figure.axes]
    assert [len(patches) for patches in drawn] == [2, 1, 1]
    for patches in drawn:
        for heights in patches:
            assert heights[1:-1:2].sum() == pytest.approx(100)
    longest = max(seconds for seconds, *_ in videos.values())
    assert max(patch.get_xy()[:, 0].max() for patch in figure.axes[0].patches) == pytest.approx(longest)
    assert all(axes.get_xscale() == "log" for axes in figure.axes)
    assert not any(axes.patches for axes in figures.lengths({"train": {}}).axes)
