"""Figures show their data, are saved in every format, and leave matplotlib's global state alone."""
import os
import subprocess
import sys

import numpy as np
import pytest
from formulas import smooth
from matplotlib.backends.backend_agg import FigureCanvasAgg

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


def test_recall_against_tiou(rng):
    recall = curve(rng)[2]
    axes, = figures.recall_by_tiou(recall, THRESHOLDS).axes
    for line, number in zip(axes.get_lines(), (100, 10, 5, 1)):
        np.testing.assert_array_equal(line.get_ydata(), recall[:, number - 1])


def test_training_curve():
    parts = ("total", "tem", "pem_reg", "pem_cls")
    epochs = [{"epoch": epoch, "train": dict.fromkeys(parts, 3.0 - epoch),
               "validation": dict.fromkeys(parts, 4.0 - epoch)} for epoch in range(3)]
    figure = figures.training_curve(epochs)
    assert len(figure.axes) == 4
    for axes in figure.axes:
        np.testing.assert_array_equal([line.get_ydata() for line in axes.get_lines()], [[3, 2, 1], [4, 3, 2]])


def test_prediction_shows_the_ten_best_and_the_truth():
    proposals = np.array([[0.9 - rank / 100, 0.1, 0.2 + rank / 100] for rank in range(12)])
    maps = smooth((1, 20), 1)[0], smooth((1, 20), 2)[0], smooth((2, 20, 20), 3)
    truth = [(5.0, 30.0, "Polo"), (40.0, 80.0, "Ballet")]
    whole = figures.prediction("v_a", 100.0, *maps, proposals, truth)
    assert whole._suptitle.get_text() == "v_a"
    for parts in ([whole], figures.prediction_in_two(100.0, *maps, proposals, truth)):
        axes = [one for part in parts for one in part.axes]
        curves, bars, confidence = axes[:3]
        np.testing.assert_array_equal(curves.get_lines()[0].get_ydata(), maps[0])
        boxes = [patch.get_extents().transformed(bars.transData.inverted()).bounds for patch in bars.patches]
        boxes = [box for box in boxes if 0.79 < abs(box[3]) < 0.81]
        np.testing.assert_allclose([box[0::2] for box in boxes[:2]], [(5, 25), (40, 40)])
        np.testing.assert_allclose([box[0::2] for box in boxes[2:]],
                                   [(10, 10 + rank) for rank in range(10)], atol=1e-9)
        image = confidence.get_images()[0].get_array()
        np.testing.assert_array_equal(image.mask, ~np.tri(20, dtype=bool))              # at [end, start], end < start
        np.testing.assert_array_equal(image.data, (maps[2][0] * maps[2][1]).T)


def test_names_are_not_read_as_formulas(tmp_path):
    maps = smooth((1, 20), 1)[0], smooth((1, 20), 2)[0], smooth((2, 20, 20), 3)
    figure = figures.prediction("v_$x_{$", 100.0, *maps, np.empty((0, 3)), [(1, 2, "$x_{$")])
    figures.save(figure, str(tmp_path / "a.png"))


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
