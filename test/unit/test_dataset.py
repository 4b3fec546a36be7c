import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import small_data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import boundary_labels_by_definition

import dataset
from bmn.data.annotation_files import read_annotation_file
from bmn.data.annotations import Video, read_entry, read_videos
from bmn.data.features import open_features
from bmn.data.windows import cut, in_window
from bmn.errors import UserError, run_as_program
from dataset import Labels, VideoDataSet, default_workers
from post_processing import OfWindows


def plain_labels(video, size):
    """The rule for labels, position by position: IoU map, start, end."""
    truth = [[min(max(edge / video.feature_seconds, 0.0), 1.0) for edge in (start, end)]
             for start, end, _ in video.actions if start < video.seconds and end >= 0]
    iou_map, boundaries = np.zeros((size, size)), np.zeros((2, size))
    for first, last in truth:
        for s in range(size):
            for e in range(s, size):
                inter = max(0.0, min((e + 1) / size, last) - max(s / size, first))
                union = (e + 1 - s) / size - inter + last - first
                iou_map[s, e] = max(iou_map[s, e], inter / union)
        for kind, edge in enumerate((first, last)):
            for i in range(size):
                inter = min((i + 0.5) / size, edge + 1.5 / size) - max((i - 0.5) / size, edge - 1.5 / size)
                boundaries[kind, i] = max(boundaries[kind, i], max(0.0, inter) * size)
    return iou_map, boundaries[0], boundaries[1]


@pytest.fixture
def activitynet(shared):
    """{name: Video} of all annotated videos of ActivityNet."""
    path = os.path.join(shared, "activitynet_annotations", "anet_anno_action.json")
    return {name: read_entry(name, entry, path) for name, entry in read_annotation_file(path).videos.items()}


def test_labels_equal_the_reference_to_the_last_bit(activitynet, golden):
    want, videos = golden("labels.npz"), activitynet
    labels = Labels(100)
    for index, name in enumerate(want["video"]):
        for got, kind in zip(labels(videos[name]), ("iou_map", "start", "end")):
            np.testing.assert_array_equal(got, want[kind][index], err_msg="%s of %s" % (kind, name))


def test_the_hard_videos_of_activitynet_follow_the_rule(activitynet):
    videos = activitynet
    degenerate = [name for name, video in videos.items() if any(start == end for start, end, _ in video.actions)]
    crowded = [name for name, video in videos.items() if len(video.actions) == 23]
    assert (len(degenerate), len(crowded)) == (12, 2)
    for name in degenerate + crowded:
        for got, want in zip(Labels(100)(videos[name]), plain_labels(videos[name], 100)):
            np.testing.assert_allclose(got, want, atol=1e-6, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 24), st.lists(st.tuples(st.floats(-20, 130), st.floats(0, 80)), max_size=5), st.floats(0.4, 1.2))
def test_labels_follow_the_rule(size, spans, ratio):
    video = Video(100.0, 100.0 * ratio, 100.0, [(start, start + length, "") for start, length in spans])
    for got, want in zip(Labels(size)(video), plain_labels(video, size)):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("layout", ["reference", "reference2019", "mmaction2", "opentad"])
def test_boundary_labels_of_a_layout_follow_the_definition(layout, rng):
    for size in (2, 7, 20):
        truth = np.sort(rng.rand(3, 2), 1)
        video = Video(1.0, 1.0, 1.0, [(start, end, "") for start, end in truth.tolist()])
        iou_map, start, end = Labels(size, layout)(video)
        np.testing.assert_array_equal(iou_map, Labels(size)(video)[0])
        for found, edges in ((start, truth[:, 0]), (end, truth[:, 1])):
            np.testing.assert_allclose(found, boundary_labels_by_definition(edges, size, layout), atol=2e-6)


def test_a_data_set_makes_the_labels_of_its_layout(tmp_path):
    opt = small_data.make(tmp_path)
    labels = {layout: VideoDataSet(dict(opt, layout=layout), "train")[0][2] for layout in ("reference", "mmaction2")}
    assert not torch.equal(labels["reference"], labels["mmaction2"])


def test_a_video_without_annotations_has_zero_labels():
    video = Video(9.0, 8.5, 9.0)
    assert [label.shape for label in Labels(20)(video)] == [(20, 20), (20,), (20,)]
    assert not any(label.any() for label in Labels(20)(video))


def test_items_hold_features_and_labels(tmp_path):
    opt = small_data.make(tmp_path)
    training = VideoDataSet(opt, "train", open_features(opt, ["v_a", "v_b", "v_c"], log=lambda line: None))
    assert training.video_list == ["v_a", "v_b", "v_c"] and len(training) == 3
    features, iou_map, start, end = training[1]
    assert [tensor.shape for tensor in (features, iou_map, start, end)] == [(6, 10), (10, 10), (10,), (10,)]
    assert {tensor.dtype for tensor in (features, iou_map, start, end)} == {torch.float32}
    np.testing.assert_array_equal(features, small_data.table("v_b").T.astype(np.float32))
    for got, want in zip((iou_map, start, end), plain_labels(training.videos["v_b"], 10)):
        np.testing.assert_allclose(got, want, atol=1e-6)
    index, features = VideoDataSet(dict(opt, mode="inference"), "validation")[1]
    assert index == 1
    np.testing.assert_array_equal(features, small_data.table("v_e").T.astype(np.float32))


def test_the_keys_of_the_reference_suffice_and_no_file_is_written(tmp_path):
    ours = small_data.make(tmp_path)
    opt = {"mode": "validation", "temporal_scale": 10, "feat_dim": 6, "feature_path": ours["data_path"] + "/",
           "video_info": ours["video_info"], "video_anno": ours["video_anno"]}
    before = sorted(tmp_path.rglob("*"))
    loader = torch.utils.data.DataLoader(VideoDataSet(opt, subset="validation"), batch_size=1, shuffle=False,
                                         num_workers=2, drop_last=False)
    seen = [(int(index), features.shape) for index, features in loader]
    assert seen == [(0, (1, 6, 10)), (1, (1, 6, 10))]
    assert sorted(tmp_path.rglob("*")) == before


def test_an_error_in_a_data_worker_is_one_sentence(tmp_path, capsys):
    opt = small_data.make(tmp_path)
    small_data.write_csv(str(tmp_path / "features" / "csv_mean_10" / "v_b.csv"), np.full((10, 6), np.nan))
    videos = iter(torch.utils.data.DataLoader(VideoDataSet(opt), num_workers=1))
    with pytest.raises(SystemExit):
        run_as_program(lambda: list(videos))
    videos._shutdown_workers()      # a forkserver begun under signals_held makes workers that no signal ends at exit
    err = capsys.readouterr().err
    assert err.startswith("error: feature file ") and "v_b.csv has nan" in err and err.count("\n") == 1


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_skip_missing_leaves_out_videos_without_features(tmp_path, cache):
    opt = dict(small_data.make(tmp_path), skip_missing=1, feature_cache=cache)
    (tmp_path / "features" / "csv_mean_10" / "v_b.csv").unlink()
    lines = []
    features = open_features(opt, ["v_a", "v_b", "v_c"], log=lines.append)
    assert VideoDataSet(opt, "train", features).video_list == ["v_a", "v_c"]
    assert "no features for 1 of 3 videos" in lines[0] and "v_b" in lines[0]


@pytest.mark.parametrize("kind,packed,ranks,processors,wanted", [
    ("cpu", True, 1, 64, 0), ("npu", True, 1, 64, 2), ("npu", True, 8, 8, 1), ("cpu", False, 1, 64, 2),
    ("npu", False, 8, 64, 8), ("npu", False, 8, 192, 8), ("cuda", False, 1, 2, 2)])
def test_default_workers(monkeypatch, kind, packed, ranks, processors, wanted):
    monkeypatch.setattr(dataset, "processors", lambda: processors)
    features = object.__new__(dataset.PackedFeatures) if packed else None
    assert default_workers(SimpleNamespace(kind=kind, world_size=ranks), features) == wanted


@pytest.mark.parametrize("cache", ["auto", "off"])
@pytest.mark.parametrize("step", [1, 3])
def test_items_of_windows(tmp_path, cache, step):
    opt = small_data.make_long(tmp_path, feature_cache=cache, window_subsample=step)
    features = open_features(opt, ["v_%d" % number for number in range(4)], log=lambda line: None)
    videos = read_videos(opt, "validation")
    windows = [window for name in videos for window in cut(name, {"v_2": 64, "v_3": 5}[name], opt)]
    validation = VideoDataSet(opt, "validation", features)
    assert validation.windows == windows and len(validation) == len(windows) > 2
    inference = VideoDataSet(dict(opt, mode="inference"), "validation", features)
    for index, window in enumerate(windows):
        whole = small_data.table(window.name, {"v_2": 64, "v_3": 5}[window.name], 6)[::step]
        wanted = np.zeros((6, 10), np.float32)
        wanted[:, :window.rows] = whole[window.first:window.first + window.rows].T
        its_index, found = inference[index]
        np.testing.assert_array_equal(found, wanted)
        found, iou_map, start, end, rows = validation[index]
        np.testing.assert_array_equal(found, wanted)
        assert its_index == index and rows == window.rows
        video, _ = in_window(window, videos[window.name], 10, 0.9)
        for got, want in zip((iou_map, start, end), plain_labels(video, 10)):
            np.testing.assert_allclose(got, want, atol=1e-6)
    assert inference.windows_of_videos() == [len(inference.items_of(name)) for name in videos]
    assert inference.items_of("v_3") == [len(windows) - 1]


@pytest.mark.parametrize("layout, silent", [("reference", True), ("mmaction2", True), ("opentad", False)])
def test_a_video_without_proposals_is_told(tmp_path, layout, silent):
    opt = small_data.make_long(tmp_path, rows=(20, 20, 1, 12), layout=layout)
    lines = VideoDataSet(dict(opt, mode="inference"), "validation").remarks
    assert lines[:-1] == ["validation subset: no proposals for 1 video with a single position (v_2)"] * silent
    assert lines[-1].startswith("validation subset windows: 3,")
    found = OfWindows(opt).add(cut("v_2", 1, opt), *(np.full(shape, 0.5, np.float32) for shape in (
        (1, 2, 10, 10), (1, 10), (1, 10))))["v_2"]
    assert (len(found) == 0) == silent
    assert len(VideoDataSet(opt, "validation").remarks) == 1


def test_training_uses_the_windows_in_which_an_action_lies(tmp_path):
    opt = small_data.make_long(tmp_path, rows=(60, 60, 30, 30), window_overlap=0)
    with open(opt["video_anno"]) as handle:
        content = json.load(handle)
    content["database"]["v_0"]["annotations"] = [{"segment": [21.0, 24.0], "label": "Diving"},
                                                 {"segment": [38.0, 41.0], "label": "cut"},
                                                 {"segment": [51.0, 53.0], "label": "Ambiguous"}]
    content["database"]["v_1"]["annotations"] = []
    with open(opt["video_anno"], "w") as handle:
        json.dump(content, handle)
    for protocol, begins in (("thumos14", [20]), ("activitynet", [20, 50])):
        training = VideoDataSet(dict(opt, protocol=protocol), "train")
        assert [window.first for window in training.windows] == begins
        assert training.item_names == ["v_0 from %d" % begin for begin in begins]
        assert training.remarks[-1] == ("train subset windows: %d of 12, those in which an action lies, of 10 positions"
                                        % len(begins))
        assert "'Ambiguous'" in training.remarks[0] and ("left out" in training.remarks[0]) == (len(begins) == 1)
    assert len(VideoDataSet(opt, "validation")) == 6
    with pytest.raises(UserError, match="no action of the 2 training videos lies in a window"):
        VideoDataSet(dict(opt, window=2, protocol="thumos14"), "train")


def test_a_video_of_as_many_rows_as_a_window_is_as_without_windows(tmp_path):
    long = small_data.make_long(tmp_path, rows=(10, 10, 10, 10))
    whole = dict(long, window=0, temporal_scale=10)
    for mode in ("train", "inference"):
        for subset in ("train", "validation"):
            one, other = (VideoDataSet(dict(opt, mode=mode), subset) for opt in (long, whole))
            assert len(one) == len(other) == 2
            for index in range(2):
                for found, wanted in zip(one[index], other[index]):
                    assert torch.equal(torch.as_tensor(found), torch.as_tensor(wanted))


@pytest.mark.parametrize("layout", ["reference", "opentad"])
@pytest.mark.parametrize("duration", [1, 3, 7])
def test_labels_of_what_is_too_long_are_zero(layout, duration):
    video = Video(10.0, 10.0, 10.0, [(1.0, 4.0, "a"), (2.0, 9.5, "b")])
    whole, band = Labels(7, layout)(video), Labels(7, layout, duration)(video)
    kept = np.tril(np.triu(np.ones((7, 7), np.float32)), duration - 1)
    np.testing.assert_array_equal(band[0], whole[0] * kept)
    for one, other in zip(band[1:], whole[1:]):
        np.testing.assert_array_equal(one, other)
