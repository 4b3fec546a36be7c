"""Time axes and maps show what they are given, however many actions there are, and every text can be read."""
import io
import unicodedata

import numpy as np
import pytest
from formulas import smooth
from matplotlib.patches import PathPatch

from bmn.results import figures, time_axis
from bmn.results.fonts import all_letters

MAPS = smooth((1, 20), 1)[0], smooth((1, 20), 2)[0], smooth((2, 20, 20), 3)
CHINESE = "\u8df3\u6c34"         # diving
LONG = "Take a long label that no axis has room for, "


def boxes(axes, height):
    """[(first, last, middle)] of the bars of a height, in data coordinates."""
    found = []
    for patch in axes.findobj(PathPatch):
        corners = patch.get_path().vertices
        if not patch.get_alpha() and len(corners) % 5 == 0:             # and not the shades
            found += [(*box[:2, 0], box[[0, 2], 1].mean()) for box in corners.reshape(-1, 5, 2)
                      if abs(np.ptp(box[:, 1]) - height) < 1e-9]
    return found


def texts(axes):
    """The labels and scores on an axis, and where they lie, in pixels."""
    with all_letters(axes.figure):
        axes.figure.canvas.draw()
    return [(text.get_text(), text.get_window_extent()) for text in axes.texts]


NOTHING = np.empty((0, 3))


def axis_of(truth, seconds=100.0, proposals=NOTHING):
    return time_axis.segments(seconds, proposals, truth).axes[0]


def many(rng, count, seconds=900.0, labels=("Beekeeping", "Tightrope walking", "Whitewater kayaking", CHINESE)):
    starts = np.sort(rng.rand(count)) * seconds * 0.98
    return [(start, start + length, labels[index % len(labels)]) for index, (start, length)
            in enumerate(zip(starts.tolist(), (rng.exponential(4, count) + 0.3).tolist()))]


def test_prediction_shows_the_ten_best_and_the_truth():
    proposals = np.array([[0.9 - rank / 100, 0.1, 0.2 + rank / 100] for rank in range(12)])
    truth = [(5.0, 30.0, "Polo"), (40.0, 80.0, "Ballet")]
    whole = time_axis.prediction("v_a", 100.0, *MAPS, proposals, truth)
    assert whole._suptitle.get_text() == "v_a"
    for parts in ([whole], time_axis.prediction_in_two(100.0, *MAPS, proposals, truth)):
        curves, bars, confidence = [one for part in parts for one in part.axes][:3]
        np.testing.assert_array_equal(curves.get_lines()[0].get_ydata(), MAPS[0])
        found = boxes(bars, 0.8)
        assert found[:2] == [(5, 30, -1), (40, 80, -1)]
        np.testing.assert_allclose(found[2:], [(10, 20 + rank, rank) for rank in range(10)], atol=1e-9)
        assert [text for text, _ in texts(bars)] == ["Polo", "Ballet"] + ["%.3f" % one for one in proposals[:10, 0]]
        image = confidence.get_images()[0].get_array()
        np.testing.assert_array_equal(image.mask, ~np.tri(20, dtype=bool))              # at [end, start], end < start
        np.testing.assert_array_equal(image.data, (MAPS[2][0] * MAPS[2][1]).T)


def test_what_the_actions_cover_is_shaded_once():
    truth = [(5.0, 30.0, "a"), (10.0, 20.0, "b"), (25.0, 40.0, "c"), (60.0, 61.0, "d")]
    figure = time_axis.boundaries(100.0, *MAPS[:2], NOTHING, truth)
    for axes in figure.axes:
        shades = [patch for patch in axes.findobj(PathPatch) if patch.get_alpha()]
        assert [patch.get_path().vertices.reshape(-1, 5, 2)[:, :2, 0].tolist() for patch in shades] == [
            [[5, 40], [60, 61]]]


def test_names_are_not_read_as_formulas(tmp_path):
    figure = time_axis.prediction("v_$x_{$", 100.0, *MAPS, NOTHING, [(1, 2, "$x_{$")])
    figures.save(figure, str(tmp_path / "a.png"))


@pytest.mark.parametrize("count", [0, 1, 7, 40, 300])
def test_every_action_is_drawn_and_counted_and_no_text_lies_on_another(rng, count):
    truth = many(rng, count)
    proposals = np.column_stack([np.linspace(1, 0, 10), np.linspace(0, 0.9, 10), np.linspace(0.2, 1, 10)])
    axes = axis_of(truth, 900.0, proposals)
    drawn = [box for box in boxes(axes, 0.8) if box[2] < 0]
    others = boxes(axes, 0.6)
    left = [one[:2] for one in truth if one[:2] not in [box[:2] for box in drawn]]
    assert len(left) == count - len(drawn)
    for at in np.linspace(0, 900, 5000):            # those that share a row are drawn where any of them is
        assert any(first <= at <= last for first, last in left) == any(box[0] <= at <= box[1] for box in others)
    shown = texts(axes)
    assert len(shown) == len(drawn) + 10 <= 60
    ticks = [tick.get_text() for tick in axes.get_yticklabels()]
    assert ("and %d more" % len(left) in ticks) == (len(left) > 0)
    assert len({round(box[2]) for box in drawn}) <= time_axis.LANES
    assert count < 300 or len(drawn) >= 15
    frame = axes.get_window_extent()
    for index, (text, place) in enumerate(shown):
        assert frame.x0 <= place.x0 and place.x1 <= frame.x1, text
        assert not any(place.overlaps(other) for _, other in shown[:index]), text
    for lane in {box[2] for box in drawn}:
        its = sorted(box[:2] for box in drawn if box[2] == lane)
        assert all(before[1] < after[0] for before, after in zip(its, its[1:]))


@pytest.mark.parametrize("first, last", [(0, 100), (0, 1), (50, 51), (99, 100), (103, 105), (-5, 2)])
@pytest.mark.parametrize("label", ["a", "Tightrope walking", CHINESE * 3, LONG * 9, CHINESE * 80, "WMWM" * 40, ""])
def test_a_label_lies_within_the_axis_and_keeps_its_beginning(first, last, label):
    axes = axis_of([(float(first), float(last), label)])
    shown = texts(axes)
    assert len(shown) == (label != "")
    for text, place in shown:
        frame = axes.get_window_extent()
        assert text == label or (label.startswith(text[:-1]) and text.endswith("\u2026") and len(text) > 25)
        if unicodedata.east_asian_width(label[0]) != "W":           # this machine may have no font to measure
            assert frame.x0 <= place.x0 and place.x1 <= frame.x1
            assert text == label or place.width > 0.75 * frame.width
    assert (len(label) < 40) == (shown == [] or shown[0][0] == label)


def test_labels_are_written_on_light_bars():
    """Contrast by the rule of the Web Content Accessibility Guidelines, 7 and more."""
    from matplotlib.colors import to_rgb
    parts = np.array(to_rgb(time_axis.TRUTH_BAR))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    assert (linear @ [0.2126, 0.7152, 0.0722] + 0.05) / 0.05 > 7
    axes = axis_of([(0.0, 90.0, "Polo")])
    bar, = [patch for patch in axes.findobj(PathPatch) if len(patch.get_path().vertices) == 5]
    assert tuple(bar.get_facecolor()[:3]) == to_rgb(time_axis.TRUTH_BAR) and axes.texts[0].get_color() == "black"


def test_wide_letters_take_twice_the_room():
    assert time_axis._width(CHINESE * 5) == 10 * time_axis.FONT > 1.5 * time_axis._width("x" * 10)


@pytest.mark.parametrize("level, noise, scale", [(0.0, 1e-6, 0.1), (0.02, 1e-3, 0.1), (0.25, 1e-3, 0.5), (0.0, 0, 0.1),
                                                 (0.8, 0.1, 1.0)])
def test_noise_is_not_blown_up(rng, level, noise, scale):
    confidence = np.stack([np.ones((20, 20)), level + noise * rng.rand(20, 20)])
    confidence[:, np.tri(20, k=-1, dtype=bool)] = 1         # cells that are not shown say nothing
    figure = time_axis.prediction("v", 100.0, *MAPS[:2], confidence, NOTHING)
    image = figure.axes[2].get_images()[0]
    assert image.get_clim() == (0, scale)
    colours = image.cmap(image.norm(image.get_array()))[~image.get_array().mask]
    assert noise > 0.05 or np.ptp(colours, axis=0).max() < 0.05


@pytest.mark.parametrize("count", [1, 3, time_axis.RINGS, time_axis.RINGS + 1, 300])
def test_marks_of_the_truth_lie_within_the_map(rng, count):
    truth = many(rng, count)
    truth[0], truth[-1] = (-20.0, 950.0, "a"), (899.0, 990.0, "b")
    figure = time_axis.prediction_in_two(900.0, *MAPS, NOTHING, truth)[1]
    figure.canvas.draw()
    axes, frame = figure.axes[0], figure.axes[0].get_window_extent()
    expected = np.clip([one[:2] for one in truth], 0, 900)
    rings = axes.get_lines()
    if rings:
        at = np.array(rings[0].get_data()).T
        size = figure.dpi / 72.0 * (rings[0].get_markersize() + rings[0].get_markeredgewidth()) / 2
        pixels = axes.transData.transform(at)
    else:
        boxes_ = axes.findobj(lambda one: isinstance(one, PathPatch) and len(one.get_path().vertices) == 5 * count)
        corners = boxes_[0].get_path().vertices.reshape(-1, 5, 2)
        at, size, pixels = corners[:, :4].mean(axis=1), 1, axes.transData.transform(corners.reshape(-1, 2))
    np.testing.assert_allclose(at, expected, atol=1e-9)
    assert (pixels >= [frame.x0 + size, frame.y0 + size]).all() and (pixels <= [frame.x1 - size, frame.y1 - size]).all()
    assert any(word in figure.axes[1].get_ylabel() for word in ("circles" if rings else "squares",))
    assert bool(rings) == (count <= time_axis.RINGS)


def test_nothing_sticks_out_of_a_figure(rng):
    truth = many(rng, 300, labels=("Polo",))
    for figure in (*time_axis.prediction_in_two(900.0, *MAPS, NOTHING, truth), time_axis.segments(9e4, NOTHING, truth),
                   time_axis.boundaries(900.0, *MAPS[:2], NOTHING, truth, time_axis.WIDE),
                   time_axis.prediction("v_a", 900.0, *MAPS[:2], None, NOTHING, truth)):
        figure.canvas.draw()
        for axes in figure.axes:
            place = axes.get_tightbbox(figure.canvas.get_renderer())
            assert min(place.x0, place.y0) >= -1
            assert place.x1 <= figure.bbox.x1 + 1 and place.y1 <= figure.bbox.y1 + 1


def test_a_curve_of_many_positions_keeps_every_peak(rng):
    for count in (999, 1000, 1001, 1234, 12345):
        start = rng.rand(count)
        start[rng.randint(count)], start[rng.randint(count)] = 2, -1
        line = time_axis.boundaries(900.0, start, start, NOTHING).axes[0].get_lines()[0]
        at, values = line.get_data()
        assert len(at) <= time_axis.POINTS + 50 and (values.max(), values.min()) == (start.max(), start.min())
        assert (np.diff(at) > 0).all() or (count > 1000 and (np.diff(at) >= 0).all())
        np.testing.assert_array_equal(values, start[np.round(at * count / 900).astype(int)])
        assert count > 1000 or len(at) == count


def test_many_actions_cost_little(rng):
    """A page of three videos with 300 actions each had 1.5 MB of SVG: patches, texts and markers by the thousand."""
    def size(truth, *maps):
        buffer = io.BytesIO()
        time_axis.boundaries(900.0, *maps, NOTHING, truth).savefig(buffer, format="svg")
        return len(buffer.getvalue())
    none, few, hundreds = (size(many(rng, count, labels=("Polo", "Ballet")), *MAPS[:2]) for count in (0, 10, 300))
    assert hundreds - none < 290 * 400 and few > none
    assert size([], rng.rand(20000), rng.rand(20000)) - none < 200000


def test_a_video_of_windows_has_curves_and_a_title_and_no_map():
    figure = time_axis.prediction("v_a$b", 90.0, *MAPS[:2], None, np.array([[0.5, 0.1, 0.9]]), [(3.0, 4.0, "Polo")])
    figure.canvas.draw()
    assert len(figure.axes) == 2 and figure._suptitle.get_text() == r"v_a\$b"
    title, legend = figure._suptitle.get_window_extent(), figure.axes[0].get_legend().get_window_extent()
    assert title.y0 > figure.axes[0].get_window_extent().y1 and legend.y1 <= title.y0 + 1
