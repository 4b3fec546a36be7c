"""Windows: where they lie, the time of a position, the actions that count, and the features that they get."""
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmn import extracted
from bmn.data import windows
from bmn.data.annotations import Video
from bmn.data.windows import cut, in_window, joined, padded
from bmn.errors import UserError

CUTS = {"window": st.integers(2, 40), "window_overlap": st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.99]),
        "window_subsample": st.integers(1, 6)}


@settings(deadline=None)
@given(st.integers(1, 300), st.fixed_dictionaries(CUTS))
def test_windows_cover_every_position_and_overlap_as_asked(total, opt):
    found, size, step = cut("v", total, opt), opt["window"], opt["window_subsample"]
    positions = len(range(0, total, step))
    covered = [position for window in found for position in range(window.first, window.first + window.rows)]
    assert set(covered) == set(range(positions))
    assert all(window.rows == min(size, positions) and window.windows == len(found) for window in found)
    begins = [window.first for window in found]
    assert begins == sorted(set(begins)) and begins[0] == 0
    stride = max(1, math.floor(round(size * (1 - opt["window_overlap"]), 4)))
    assert all(after - before == stride for before, after in zip(begins[:-2], begins[1:-1]))
    assert len(begins) < 2 or begins[-1] - begins[-2] <= stride
    for window in found:
        assert list(range(total))[window.rows_of_file] == [
            (window.first + position) * step for position in range(window.rows)]


@settings(deadline=None)
@given(st.integers(1, 100), st.fixed_dictionaries(CUTS), st.floats(0.1, 20), st.floats(0.1, 20), st.booleans())
def test_the_time_of_a_position_with_snippets_of_another_length(total, opt, stride, snippet, in_frames):
    """The centre of row i is at i * stride + snippet / 2, in labels and proposals."""
    seconds = (total - 1) * stride + snippet
    video = Video(seconds * (0.04 if in_frames else 1), 1.0, 1.0, frames=seconds)
    unit = "f" if in_frames else ""
    opt = dict(opt, feature_stride="%r%s" % (stride, unit), feature_snippet="%r%s" % (snippet, unit))
    margin = windows.margin_of(opt)
    video = windows.with_stride({"v": video}, {"v": total}, opt, margin)["v"]
    assert video.feature_seconds == pytest.approx(video.seconds) == pytest.approx(video.proposal_seconds)
    for window in cut("v", total, opt, margin):
        for position in range(window.rows):
            row = range(total)[window.rows_of_file][position]
            centre = (row * stride + snippet / 2) * (0.04 if in_frames else 1)
            assert window.fraction(position + 0.5) * video.feature_seconds == pytest.approx(centre, rel=1e-9)
        action = tuple(window.fraction(edge) * video.feature_seconds for edge in (0.25, window.rows - 0.25))
        if not 0 <= action[0] <= action[1] <= video.feature_seconds:
            continue                    # between the outermost positions and the ends of the features
        found, _ = in_window(window, video._replace(actions=[(*action, "a")]), opt["window"], 0.9)
        (start, end, _), = found.actions
        scale = found.feature_seconds / opt["window"]
        assert (start / scale, end / scale) == pytest.approx((0.25, window.rows - 0.25), abs=1e-6)


@settings(deadline=None)
@given(st.integers(1, 300), st.fixed_dictionaries(CUTS))
def test_the_time_of_a_position_is_the_centre_of_its_row(total, opt):
    for window in cut("v", total, opt):
        for position in range(window.rows):
            row = range(total)[window.rows_of_file][position]
            assert window.fraction(position + 0.5) * total == pytest.approx(row + 0.5, abs=1e-9)


def actions_by_definition(window, video, size, least):
    """The rule, action by action, in positions of the window: (start, end, label) of those that count."""
    def position(seconds):
        row = seconds / video.feature_seconds * window.total                # 0 is the beginning of row 0
        return (row - 0.5 - window.first * window.step) / window.step + 0.5
    begin, end = 0.0, float(window.rows)
    if window.first == 0:
        begin = min(begin, position(0.0))
    if window.first + window.rows == len(range(0, window.total, window.step)):
        end = max(end, position(video.feature_seconds))
    found = []
    for start, stop, label in video.actions:
        if start >= video.seconds or stop < 0:
            continue
        first, last = (position(min(max(edge, 0), video.feature_seconds)) for edge in (start, stop))
        inside = min(last, end) - max(first, begin)
        if (inside > 0 or (inside == 0 and first == last)) and inside >= least * (last - first) - 1e-9:
            found.append((max(first, begin), min(last, end), label))
    return found


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 120), st.fixed_dictionaries(CUTS), st.floats(1, 500), st.floats(0.5, 1.5),
       st.lists(st.tuples(st.floats(-0.2, 1.2), st.floats(0, 0.6)), max_size=6), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_the_actions_of_a_window(total, opt, seconds, coverage, segments, least):
    covered = seconds * coverage
    actions = [(start * seconds, (start + length) * seconds, "a%d" % number)
               for number, (start, length) in enumerate(segments)]
    video = Video(seconds, covered, covered, actions)
    for window in cut("v", total, opt):
        found, _ = in_window(window, video, opt["window"], least)
        wanted = actions_by_definition(window, video, opt["window"], least)
        scale = found.feature_seconds / opt["window"]
        assert scale == pytest.approx(covered / total * window.step)
        rounded = {label for _, _, label in wanted} ^ {label for _, _, label in found.actions}
        for label in rounded:           # only one that lies in the window by exactly the asked part may differ
            start, stop, _ = next(one for one in actions if one[2] == label)
            assert least > 0 or stop - start < 1e-6
            strictly = [actions_by_definition(window, video, opt["window"], part) for part in (
                least - 1e-6, least + 1e-6)]
            assert [label in [one[2] for one in some] for some in strictly] == [True, False] or stop - start < 1e-6
        for start, stop, label in found.actions:
            for first, last, other in wanted:
                if other == label:
                    assert (start / scale, stop / scale) == pytest.approx((first, last), abs=1e-6)


def test_an_action_that_is_cut_too_much_is_counted():
    window = cut("v", 20, {"window": 10, "window_overlap": 0, "window_subsample": 1})[0]
    video = Video(20.0, 20.0, 20.0, [(8.0, 12.0, "half"), (1.0, 3.0, "whole"), (15.0, 16.0, "elsewhere")])
    found, too_little = in_window(window, video, 10, 0.9)
    assert [label for *_, label in found.actions] == ["whole"] and too_little == 1
    found, too_little = in_window(window, video, 10, 0.5)
    assert found.actions == [(8.0, 10.0, "half"), (1.0, 3.0, "whole")] and too_little == 0


def test_a_stride_gives_the_lengths_that_features_cover():
    videos = {"a": Video(10.0, 9.0, 9.0, frames=300.0), "b": Video(20.0, 20.0, 20.0, frames=500.0)}
    rows = {"a": 50, "b": 98}

    def with_stride(videos, rows, stride, snippet=""):
        opt = {"feature_stride": stride, "feature_snippet": snippet}
        return windows.with_stride(videos, rows, opt, windows.margin_of(opt))

    assert with_stride(videos, rows, "") is videos
    assert with_stride(videos, rows, "0.2", "0.6")["a"].feature_seconds == pytest.approx(49 * 0.2 + 0.6)
    for stride, lengths in (("0.2", (10.0, 19.6)), ("0.2s", (10.0, 19.6)), ("6f", (10.0, 98 * 6 / 25.0))):
        found = with_stride(videos, rows, stride) if stride != "6f" else with_stride({"a": videos["a"]}, rows, stride)
        assert [video.feature_seconds for video in found.values()] == pytest.approx(lengths[:len(found)])
        assert all(video.proposal_seconds == video.feature_seconds for video in found.values())
        assert found["a"].seconds == 10.0
    with pytest.raises(UserError, match=r"--feature_stride 0\.5.* 2 of 2 videos.*50 rows are 25\.0 seconds.*10\.0"):
        with_stride(videos, rows, "0.5")
    with pytest.raises(UserError, match=r"--feature_stride 6f is in frames.* frames a video has \(c\): give it in"):
        with_stride(dict(videos, c=Video(1.0, 1.0, 1.0)), dict(rows, c=5), "6f")


@pytest.mark.parametrize("rows, refused", [(100, False), (91, False), (109, False), (88, True), (112, True),
                                           (150, True)])
def test_a_stride_must_fit_most_videos(rows, refused):
    """Within a tenth; where half of the videos fit, the others may be cut."""
    videos = {name: Video(100.0, 100.0, 100.0) for name in "abcd"}
    opt = {"feature_stride": "1", "feature_snippet": ""}
    for fitting in range(5):
        counts = {name: 100 if number < fitting else rows for number, name in enumerate("abcd")}
        if refused and fitting < 2:
            with pytest.raises(UserError, match="the features of %d of 4 videos do not cover" % (4 - fitting)):
                windows.with_stride(videos, counts, opt)
        else:
            assert windows.with_stride(videos, counts, opt)["d"].feature_seconds == counts["d"]


def test_extracted_features_say_how_far_apart_their_rows_are():
    """Row i describes the i-th cell of stride frames, and a last cell that is not whole has no row (docs/video.md)."""
    lengths = {"v": extracted.Length(10.0, 250, 25.0, 31, 8.0)}
    opt = {"feature_stride": "", "feature_snippet": "", "window": 12, "window_overlap": 0.5, "window_subsample": 1}
    video = windows.with_stride({"v": Video(10.0, 10.0, 10.0)}, {"v": 31}, opt, windows.margin_of(opt), lengths)["v"]
    for window in cut("v", 31, opt):
        for position in range(window.rows):
            centre = (window.first + position + 0.5) * 8 / 25.0
            assert window.fraction(position + 0.5) * video.feature_seconds == pytest.approx(centre)


def test_rescaled_features_are_refused():
    videos = {"a": Video(10.0, 10.0, 10.0), "b": Video(16.0, 16.0, 16.0)}
    opt = {"feature_stride": ""}
    with pytest.raises(UserError, match=r"all 2 videos have 100 rows.* 10 to 16 seconds.* leave --window out"):
        windows.with_stride(videos, {"a": 100, "b": 100, "in no subset": 50}, opt)
    assert windows.with_stride(videos, {"a": 100, "b": 101}, opt) is videos
    assert windows.with_stride({"a": videos["a"]}, {"a": 100}, opt)


def test_padding_and_joining():
    assert padded(np.ones((3, 2), np.float32), 5).tolist() == [[1, 1, 0, 0, 0]] * 3
    cuts = cut("v", 7, {"window": 4, "window_overlap": 0.5, "window_subsample": 1})
    assert [window.first for window in cuts] == [0, 2, 3]
    curve = np.array([[0, 1, 2, 3], [2, 3, 4, 5], [3, 4, 5, 6]], float)
    np.testing.assert_array_equal(joined(cuts, curve), np.arange(7))
    short = cut("v", 3, {"window": 4, "window_overlap": 0.5, "window_subsample": 1})
    np.testing.assert_array_equal(joined(short, curve[:1]), [0, 1, 2])
