"""Soft-NMS, the result file and BMN_post_processing: the reference's figures, and a plain version of the rule."""
import csv
import json
import os

import numpy as np
import pytest
from formulas import smooth
from oracles import candidates_by_definition, mmaction2_soft_nms_by_definition, soft_nms_by_the_rule

import post_processing
from bmn.data.annotations import read_entry
from bmn.data.windows import cut
from bmn.errors import UserError
from bmn.options import DEFAULTS
from bmn.results import score_tables

ENTRY = {"duration_second": 123.4, "duration_frame": 3001, "feature_frame": 2992}
VIDEO = read_entry("v", ENTRY, "")


def maps_of(rng, batch, scale, levels):
    """Random maps; few levels make many ties, one level makes all scores equal."""
    def draw(*shape):
        return (rng.randint(1, levels + 1, shape) / np.float32(levels + 1)).astype(np.float32)
    return draw(batch, 2, scale, scale), draw(batch, scale), draw(batch, scale)


def golden_maps():
    return (np.stack([smooth((2, 100, 100), 400 + i) for i in range(6)]),
            np.concatenate([smooth((1, 100), 420 + i) for i in range(6)]),
            np.concatenate([smooth((1, 100), 440 + i) for i in range(6)]))


def assert_follows_the_rule(confidence_map, start, end, opt):
    for video, ours in enumerate(post_processing.proposals(confidence_map, start, end, opt)):
        table = score_tables.score_table(confidence_map[video], start[video], end[video])
        theirs = soft_nms_by_the_rule([(row[6], row[0], row[1]) for row in table.tolist()], opt)
        np.testing.assert_array_equal(ours, np.array(theirs))


def test_result_file_equals_the_reference(golden, shared, tmp_path):
    names = [str(name) for name in golden("proposals.npz")["video"]]
    with open(os.path.join(shared, "activitynet_annotations", "anet_anno_action.json")) as handle:
        annotated = json.load(handle)
    kept = post_processing.proposals(*golden_maps(), DEFAULTS)
    path = str(tmp_path / "result.json")
    videos = {name: read_entry(name, annotated[name], "") for name in names}
    post_processing.write_result(path, videos, dict(zip(names, kept)))
    with open(path) as handle:
        ours = json.load(handle)
    with open(os.path.join(shared, "golden", "result_proposal.json")) as handle:
        theirs = json.load(handle)
    assert {**ours, "results": 0} == {**theirs, "results": 0}
    assert list(ours["results"]) == [name[2:] for name in names]
    assert set(ours["results"]) == set(theirs["results"])
    for name, rows in theirs["results"].items():
        assert [row["segment"] for row in ours["results"][name]] == [row["segment"] for row in rows]
        np.testing.assert_allclose([row["score"] for row in ours["results"][name]], [row["score"] for row in rows],
                                   rtol=1e-13)     # exp of another NumPy differs in the last digit


def test_small_tables_give_the_proposals_of_the_reference(golden):
    figures = golden("small_nms.npz")
    for scale in (2, 6, 12):
        table, kept = figures["%d/table" % scale], figures["%d/kept" % scale]
        ours = post_processing.soft_nms(table[:, 0], table[:, 1], table[:, 6], DEFAULTS)
        np.testing.assert_allclose(ours, kept, rtol=1e-13)


@pytest.mark.parametrize("alpha", [0.4, 0.05, 1e-4])
@pytest.mark.parametrize("thresholds", [(0.5, 0.9), (0.0, 1.0), (0.3, 0.3), (1.0, 1.0)])
def test_random_maps_follow_the_rule(rng, alpha, thresholds):
    opt = {"soft_nms_alpha": alpha, "soft_nms_low_thres": thresholds[0], "soft_nms_high_thres": thresholds[1],
           "kept": rng.randint(1, 150)}
    for levels in (1, 2, 3, 7, 1000):
        assert_follows_the_rule(*maps_of(rng, 3, rng.randint(2, 18), levels), opt)


@pytest.mark.parametrize("levels", [1, 4, 10 ** 6])
def test_full_size_maps_follow_the_rule(rng, levels):
    assert_follows_the_rule(*maps_of(rng, 2, 100, levels), DEFAULTS)


@pytest.mark.parametrize("layout,max_duration", [
    ("reference", 3), ("reference2019", 0), ("mmaction2", 0), ("mmaction2", 3), ("opentad", 0), ("opentad", 3)])
def test_proposals_of_a_layout_follow_its_own_rule(rng, layout, max_duration):
    opt = dict(DEFAULTS, layout=layout, max_duration=max_duration)
    for scale in (2, 6, 13, 30):
        maps = maps_of(rng, 3, scale, 10 ** 6)
        for video, ours in enumerate(post_processing.proposals(*maps, opt)):
            found = candidates_by_definition(maps[1][video], maps[2][video], *maps[0][video], layout, max_duration)
            if layout == "mmaction2":
                rule = opt["soft_nms_alpha"], opt["soft_nms_low_thres"], opt["soft_nms_high_thres"]
                theirs = mmaction2_soft_nms_by_definition(found, *rule)
            else:
                theirs = soft_nms_by_the_rule([(score, *segment) for segment, score in found.items()], opt)
            np.testing.assert_allclose(ours, np.array(theirs, np.float64).reshape(-1, 3), rtol=1e-6)


@pytest.mark.parametrize("layout,levels", [
    ("reference", 1), ("reference", 3), ("reference", 10 ** 6), ("opentad", 1), ("opentad", 3), ("opentad", 10 ** 6),
    ("mmaction2", 10 ** 6)])        # whose IoU is rounded in another order than the rule here: it may have no ties
def test_the_proposals_of_windows_are_those_of_one_table(rng, layout, levels):
    """Every pair of every window in one list, then the rule: random numbers of windows, overlaps, D and padding."""
    for _ in range(8):
        size, rows = rng.randint(2, 9), rng.randint(1, 40)
        opt = dict(DEFAULTS, window=size, window_overlap=rng.choice([0, 0.25, 0.5, 0.8]), layout=layout,
                   max_duration=rng.randint(0, size), window_subsample=rng.randint(1, 4), kept=rng.randint(1, 60),
                   soft_nms_low_thres=rng.choice([0, 0.3]), soft_nms_high_thres=0.9)
        windows = cut("v", rows, opt)
        confidence_map, start, end = maps_of(rng, len(windows), size, levels)
        table, step = [], opt["window_subsample"]
        for index, window in enumerate(windows):
            here = window.rows
            found = candidates_by_definition(start[index, :here], end[index, :here],
                                             *confidence_map[index, :, :here, :here], layout, opt["max_duration"])
            for (first, last), score in found.items():
                edges = [window.first + round(edge * here) for edge in (first, last)]
                table.append((float(score), *((edge * step + (1 - step) / 2) / rows for edge in edges)))
        if layout == "mmaction2":
            rule = mmaction2_soft_nms_of_a_list(table, opt)
        else:
            rule = soft_nms_by_the_rule(table, opt)
        merged, together = post_processing.OfWindows(opt), {}
        for first in range(0, len(windows), 3):
            together.update(merged.add(windows[first:first + 3], confidence_map[first:first + 3],
                                       start[first:first + 3], end[first:first + 3]))
            assert bool(together) == (first + 3 >= len(windows))
        np.testing.assert_allclose(together["v"], np.array(rule).reshape(-1, 3), rtol=1e-6, atol=1e-300)


def mmaction2_soft_nms_of_a_list(table, opt):
    """mmaction2 keeps the last candidate, which the rule of the reference drops."""
    last = (-1.0, 5.0, 5.0)
    return [row for row in soft_nms_by_the_rule([*table, last], opt) if row[0] >= 0] if table else []


def test_windows_of_several_videos_are_kept_apart(rng):
    opt = dict(DEFAULTS, window=6, window_overlap=0.5, window_subsample=1)
    windows = [window for name, rows in (("a", 20), ("b", 3), ("c", 12)) for window in cut(name, rows, opt)]
    maps = maps_of(rng, len(windows), 6, 1000)
    found = post_processing.OfWindows(opt).add(windows, *maps)
    assert list(found) == ["a", "b", "c"]
    for name in found:
        own = [index for index, window in enumerate(windows) if window.name == name]
        alone = post_processing.OfWindows(opt).add([windows[index] for index in own], *(one[own] for one in maps))
        np.testing.assert_array_equal(alone[name], found[name])
        assert found[name][:, 1].min() >= 0 and found[name][:, 2].max() <= 1


def test_a_video_as_long_as_a_window_has_the_proposals_of_a_whole_video(rng):
    for layout in ("reference", "mmaction2", "opentad"):
        for levels in (2, 1000):
            opt = dict(DEFAULTS, window=12, layout=layout)
            maps = maps_of(rng, 1, 12, levels)
            whole, = post_processing.proposals(*maps, opt)
            np.testing.assert_array_equal(post_processing.OfWindows(opt).add(cut("v", 12, opt), *maps)["v"], whole)


def test_a_video_without_candidates_has_no_proposals():
    maps = np.ones((1, 2, 9, 9), np.float32), np.float32([[1, 0, 0, 0, 0, 0, 0, 0, 0]]), np.zeros((1, 9), np.float32)
    maps[2][0, -1] = 1
    found, = post_processing.proposals(*maps, dict(DEFAULTS, layout="mmaction2", max_duration=3))
    assert found.shape == (0, 3)


def test_proposals_of_score_zero_are_kept_once_each():
    maps = np.zeros((1, 2, 8, 8), np.float32), np.zeros((1, 8), np.float32), np.zeros((1, 8), np.float32)
    assert_follows_the_rule(*maps, DEFAULTS)
    assert_follows_the_rule(*maps, {**DEFAULTS, "soft_nms_alpha": 1e-6})


def test_negative_scores_follow_the_rule(rng):
    confidence_map, start, end = maps_of(rng, 4, 10, 10 ** 6)
    assert_follows_the_rule(confidence_map - np.float32(0.5), start, end, DEFAULTS)


def test_a_tie_of_proposals_that_overlap_follows_the_rule():
    """[0, 3/4] makes the scores of [0, 1/4] and [0, 2/4] equal; they overlap. [0, 2/4] was higher, so it goes first."""
    opt = {"soft_nms_alpha": 1.0, "soft_nms_low_thres": 0.1, "soft_nms_high_thres": 0.1}
    xmin, xmax = score_tables.pairs(4)[2:]
    little, much = np.exp(-np.square(xmax[:2] / xmax[2]))
    score = np.array([[0.5 * much / little, 0.5, 0.9, 0.01, 0.02, 0.03]])
    while score[0, 0] * little < 0.5 * much:
        score[0, 0] = np.nextafter(score[0, 0], 1)
    while score[0, 0] * little > 0.5 * much:
        score[0, 0] = np.nextafter(score[0, 0], 0)
    assert score[0, 0] * little == 0.5 * much and score[0, 0] < 0.5
    ours = post_processing.grid_soft_nms(score, 4, opt)[0]
    theirs = soft_nms_by_the_rule(list(zip(score[0].tolist(), xmin.tolist(), xmax.tolist())), opt)
    np.testing.assert_array_equal(ours, np.array(theirs))


@pytest.mark.parametrize("rest", [[0.1, 0.11, 0.12], [0.8, 0.89, 0.7]])     # the tie comes second, or last
def test_a_tie_of_other_proposals_follows_the_rule(rest):
    """[0, 3/4] makes the score of [0, 2/4] equal to that of [0, 1/4]. [0, 2/4] was higher, so it goes first."""
    opt = {"soft_nms_alpha": 1.0, "soft_nms_low_thres": 0.6, "soft_nms_high_thres": 0.6}
    xmin, xmax = score_tables.pairs(4)[2:]
    score = np.array([[0, 0.5, 0.9, *rest]])
    score[0, 0] = 0.5 * np.exp(-np.square(xmax[[1]] / xmax[2]))[0]
    ours = post_processing.grid_soft_nms(score, 4, opt)[0]
    theirs = soft_nms_by_the_rule(list(zip(score[0].tolist(), xmin.tolist(), xmax.tolist())), opt)
    np.testing.assert_array_equal(ours, np.array(theirs))


@pytest.mark.parametrize("levels", [3, 10 ** 6])
def test_proposals_do_not_depend_on_the_batch(rng, levels):
    confidence_map, start, end = maps_of(rng, 7, 100, levels)
    together = post_processing.proposals(confidence_map, start, end, DEFAULTS)
    for part in (slice(0, 1), slice(2, 5), slice(6, None, -1)):
        apart = post_processing.proposals(confidence_map[part], start[part], end[part], DEFAULTS)
        for one, other in zip(apart, together[part]):
            assert one.tobytes() == other.tobytes()


def test_a_broken_network_is_reported(rng):
    confidence_map, start, end = maps_of(rng, 2, 6, 5)
    confidence_map[1, 0, 2, 3] = np.nan
    with pytest.raises(UserError, match="not finite"):
        post_processing.proposals(confidence_map, start, end, DEFAULTS)


def test_result_file_equals_json_dumps_and_segments_are_clipped_to_the_video(tmp_path):
    path = str(tmp_path / "new" / "result.json")
    kept = {"v_a\"": np.array([[0.1, -0.5, 0.5]]), "v_b": np.array([[0.3, 0.2, 1.5], [0.2, 0, 1]])}
    post_processing.write_result(path, {"v_b": VIDEO, "v_a\"": VIDEO}, kept)
    seconds = 2992.0 / 3001 * 123.4
    expected = {"version": "VERSION 1.3", "results": {
        "b": [{"score": 0.3, "segment": [0.2 * seconds, seconds]}, {"score": 0.2, "segment": [0.0, seconds]}],
        "a\"": [{"score": 0.1, "segment": [0.0, 0.5 * seconds]}]}, "external_data": {}}
    with open(path) as handle:
        assert handle.read() == json.dumps(expected)


# BMN_post_processing, and tables of another program

@pytest.fixture
def job(tmp_path, monkeypatch, rng):
    """(options, {name: maps}) of ten validation videos with their tables; two videos are of another subset."""
    monkeypatch.chdir(tmp_path)
    names = ["v_%d" % i for i in range(12)]
    with open("info.csv", "w") as handle:
        handle.write("video,subset\n" + "".join(
            "%s,%s\n" % (name, "training" if i in (3, 5) else "validation") for i, name in enumerate(names)))
    with open("anno.json", "w") as handle:
        json.dump(dict.fromkeys(names, ENTRY), handle)
    kept = [name for i, name in enumerate(names) if i not in (3, 5)]
    maps = {name: [one[0] for one in maps_of(rng, 1, 14, 50)] for name in kept}
    for name, one in maps.items():
        score_tables.write_table("output/BMN_results/%s.csv" % name, *one)
    return {"video_info": "info.csv", "video_anno": "anno.json", "result_file": "result.json"}, maps


def test_tables_and_maps_in_memory_give_the_same_result(job):
    opt, maps = job
    kept = {name: post_processing.proposals(*(one[None] for one in its_maps), DEFAULTS)[0]
            for name, its_maps in maps.items()}
    post_processing.write_result("memory.json", dict.fromkeys(maps, VIDEO), kept)
    for processes in (1, 3, 8):
        post_processing.BMN_post_processing({**opt, "post_process_thread": processes})
        with open("memory.json", "rb") as ours, open("result.json", "rb") as theirs:
            assert ours.read() == theirs.read()


def test_tables_of_other_programs_are_read(job):
    """Another order of columns, another precision, segments off the grid, a blank line at the end."""
    opt, maps = job
    post_processing.BMN_post_processing(opt)
    rows = [(0.5, 0.111, 0.52), (0.25, 0.1, 0.5), (0.125, 0.6, 0.7), (0.0625, 0.61, 0.7)]
    with open("output/BMN_results/v_1.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["score", "xmax", "xmin", "more"])
        writer.writerows([score, xmax, xmin, "text"] for score, xmin, xmax in rows)
        handle.write("\n")
    post_processing.BMN_post_processing(opt)
    with open("result.json") as handle:
        results = json.load(handle)["results"]
    assert list(results) == [name[2:] for name in maps]
    seconds = 2992.0 / 3001 * 123.4
    np.testing.assert_allclose([[row["score"], *np.array(row["segment"]) / seconds] for row in results["1"]],
                               soft_nms_by_the_rule(rows, DEFAULTS), rtol=1e-12)


@pytest.mark.parametrize("content, words", [
    (None, "does not exist"), ("", "not a table"), ("xmin,xmax,score\n", "no rows"),
    ("xmin,xmax,score\n0,0.5,high\n", "not a table"), ("xmin,xmax,score\n0,0.5,nan\n", "not finite"),
    ("xmin,xmax,score\n0,0.5,1\n0,0.5", "not a table"), ("a,b\n1,2\n", "not a table")])
def test_a_broken_table_is_named_and_the_result_stays(job, content, words):
    opt, _ = job
    with open("result.json", "w") as handle:
        handle.write("old")
    os.remove("output/BMN_results/v_7.csv")
    if content is not None:
        with open("output/BMN_results/v_7.csv", "w") as handle:
            handle.write(content)
    with pytest.raises(UserError, match=r"v_7.csv.*%s.*--save_csv 1" % words):
        post_processing.BMN_post_processing(opt)
    with open("result.json") as handle:
        assert handle.read() == "old"
    assert [name for name in os.listdir(".") if name.endswith(".tmp")] == []
