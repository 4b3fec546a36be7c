import itertools
import json
import os
import sys

import numpy as np
import prepare_features
import pytest
import small_data
from oracles import plain_rescaling

from bmn import extracted
from bmn.data.annotation_files import read_annotation_files
from bmn.data.annotations import read_videos
from bmn.data.feature_files import read_csv, write_csv
from bmn.data.rescaling import rescale_linearly
from bmn.errors import UserError


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["prepare_features.py"] + [str(argument) for argument in arguments])
    prepare_features.main(prepare_features.parse_arguments())


def test_the_real_raw_files_are_rescaled(shared, tmp_path, monkeypatch, capsys):
    raw = os.path.join(shared, "features")
    anno = os.path.join(raw, "action_test_anno.json")
    run(monkeypatch, "--input", raw, "--output", tmp_path, "--video_anno", anno, "--write_anno", tmp_path / "anno.json",
        "--coverage", 1.5, 3)
    assert "2 videos rescaled to T = 100, C = 400" in capsys.readouterr().out
    for name, frames, seconds in (("v_test1", 30, 1), ("v_test2", 48, 2)):
        want = plain_rescaling(read_csv(os.path.join(raw, name + ".csv")), frames, seconds, 100)
        got = read_csv(str(tmp_path / "csv_mean_100" / (name + ".csv")))
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)
    assert json.loads((tmp_path / "anno.json").read_text())["v_test1"]["feature_frame"] == 80


def test_array_files_are_rescaled_linearly_without_annotations(tmp_path, monkeypatch, rng):
    raw = {name: rng.randn(length, 6) for name, length in (("v_a", 4), ("v_b", 9), ("v_c", 1))}
    (tmp_path / "raw").mkdir()
    np.save(str(tmp_path / "raw" / "v_a.npy"), raw["v_a"])
    np.savez(str(tmp_path / "raw" / "v_b.npz"), raw["v_b"].T)
    small_data.write_csv(str(tmp_path / "raw" / "v_c.csv"), raw["v_c"])
    (tmp_path / "raw" / "v_d.npy").mkdir()
    for name in (".v_e.npy", "._v_c.csv"):
        (tmp_path / "raw" / name).write_text("no video")
    run(monkeypatch, "--input", tmp_path / "raw", "--output", tmp_path, "--method", "linear", "--temporal_scale", 10,
        "--feat_dim", 6)
    for name, numbers in raw.items():
        got = read_csv(str(tmp_path / "csv_mean_10" / (name + ".csv")))
        np.testing.assert_allclose(got[:, :6], rescale_linearly(numbers, 10), rtol=1e-11, atol=1e-11)
    assert len(os.listdir(str(tmp_path / "csv_mean_10"))) == 3


def test_columns_are_filled_up_to_a_multiple_of_four(tmp_path, monkeypatch, capsys, rng):
    raw = rng.randn(9, 6)
    (tmp_path / "raw").mkdir()
    np.save(str(tmp_path / "raw" / "v_a.npy"), raw)
    for more in ([], ["--feat_dim", 6], ["--feat_dim", 8]):
        run(monkeypatch, "--input", tmp_path / "raw", "--output", tmp_path, "--method", "linear",
            "--temporal_scale", 10, *more)
        got = read_csv(str(tmp_path / "csv_mean_10" / "v_a.csv"))
        np.testing.assert_allclose(got[:, :6], rescale_linearly(raw, 10), rtol=1e-11, atol=1e-11)
        assert got.shape == (10, 8) and not got[:, 6:].any()
        assert "C = 6 was filled up with columns of zeros: give --feat_dim 8 to main.py" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--feat_dim", 8]])
@pytest.mark.parametrize("widths", list(itertools.permutations([8, 7, 6])))
def test_a_video_that_lacks_columns_does_not_pass_for_one_that_is_filled_up(tmp_path, monkeypatch, widths, more):
    (tmp_path / "raw").mkdir()
    for name, width in zip("abc", widths):
        np.save(str(tmp_path / "raw" / name), np.ones((30, width)))
    with pytest.raises(UserError, match="raw features of b in .*30 rows and %d columns, but .* %d: " % widths[1::-1]):
        run(monkeypatch, "--input", tmp_path / "raw", "--output", tmp_path, "--method", "linear", *more)


def test_raw_features_are_annotated_with_and_without_the_prefix(tmp_path, monkeypatch):
    (tmp_path / "raw").mkdir()
    (tmp_path / "anno.json").write_text(json.dumps({name: {"duration_second": 3, "duration_frame": 80}
                                                    for name in ("v_a", "b")}))
    for name in ("a", "v_b"):
        np.save(str(tmp_path / "raw" / name), np.ones((5, 4)))
    run(monkeypatch, "--input", tmp_path / "raw", "--output", tmp_path, "--video_anno", tmp_path / "anno.json",
        "--write_anno", tmp_path / "new.json")
    assert sorted(os.listdir(str(tmp_path / "csv_mean_100"))) == ["b.csv", "v_a.csv"]
    assert {name: one["feature_frame"] for name, one in json.loads((tmp_path / "new.json").read_text()).items()} == {
        "v_a": 80, "b": 80}


@pytest.mark.parametrize("arguments,parts", [
    (["--method", "linear", "--feat_dim", "7"], ["v_a in ", "5 rows and 6 columns", "--feat_dim is 7"]),
    (["--method", "linear", "--feat_dim", "5"], ["v_b in ", "9 rows and 6 columns", "--feat_dim is 5"]),
    ([], ["--video_anno"]),
    (["--video_anno", "anno.json"], ["lacks 1 of 2", "v_b", "--method linear"]),
    (["--method", "linear", "--temporal_scale", "1"], ["--temporal_scale 1"]),
    (["--input", "nowhere", "--method", "linear"], ["nowhere does not exist"]),
    (["--input", "anno.json", "--method", "linear"], ["neither a folder nor an HDF5 file"]),
])
def test_mistakes_in_the_input_are_reported(tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(str(tmp_path))
    (tmp_path / "raw").mkdir()
    np.save("raw/v_a.npy", np.ones((5, 6)))
    np.save("raw/v_b.npy", np.ones((9, 6)))
    (tmp_path / "anno.json").write_text('{"v_a": {"duration_second": 3, "duration_frame": 80}}')
    with pytest.raises(UserError) as error:
        run(monkeypatch, "--input", "raw", "--output", "out", *arguments)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_an_odd_first_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "raw").mkdir()
    for name, columns in (("v_a", 12), ("v_b", 8), ("v_c", 8)):
        small_data.write_csv(str(tmp_path / "raw" / (name + ".csv")), np.ones((30, columns)))
    with pytest.raises(UserError, match=r"v_b in .* 8 columns, but those of v_a have C = 12: .*2 of 3 videos"):
        run(monkeypatch, "--input", tmp_path / "raw", "--output", tmp_path, "--method", "linear")


@pytest.mark.parametrize("content,parts", [
    ({}, ["raw.h5 holds no features", "data set for each video"]),
    ({"a/b": 1, "sub/dir/x": 1}, ["sub is a group of 1 (dir)", "a single data set"]),
    (None, ["raw.h5 is not a readable HDF5 file"]),
])
def test_mistakes_in_an_hdf5_file_are_reported(tmp_path, monkeypatch, content, parts):
    h5py = pytest.importorskip("h5py")
    path = str(tmp_path / "raw.h5")
    if content is None:
        (tmp_path / "raw.h5").write_text("no HDF5")
    else:
        with h5py.File(path, "w") as handle:
            for name in content:
                handle[name] = np.ones((5, 6))
    with pytest.raises(UserError) as error:
        run(monkeypatch, "--input", path, "--output", tmp_path / "out", "--method", "linear")
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "--data_path" not in str(error.value)


def test_feature_files_are_written_without_waiting_for_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", None)
    write_csv(str(tmp_path / "v_a.csv"), np.ones((2, 3)))
    assert os.listdir(str(tmp_path)) == ["v_a.csv"]


@pytest.mark.parametrize("entry", [{"duration_frame": 80, "annotations": []}, {"duration_second": True},
                                   {"duration_second": 3, "duration_frame": -1},
                                   {"duration_second": "three", "duration_frame": 80}])
def test_durations_that_are_no_numbers_are_refused(tmp_path, entry):
    (tmp_path / "anno.json").write_text(json.dumps({"v_a": entry}))
    files = read_annotation_files(str(tmp_path / "anno.json"))
    with pytest.raises(UserError, match=r"v_a has (the length|duration_frame)|length of video v_a"):
        prepare_features.read_lengths(files, ["v_a"], None)


def prepared(tmp_path, monkeypatch, entries, snippets, *options):
    """(features, annotations written) of raw features of so many ``snippets`` each; ``entries`` as in a file."""
    os.makedirs(str(tmp_path / "raw"))
    for name, count in snippets.items():
        np.save(str(tmp_path / "raw" / (name + ".npy")), np.random.RandomState(count).randn(count, 8))
    (tmp_path / "anno.json").write_text(json.dumps(entries))
    run(monkeypatch, "--input", tmp_path / "raw", "--output", tmp_path / "out", "--video_anno", tmp_path / "anno.json",
        "--write_anno", tmp_path / "new.json", "--temporal_scale", 20, "--feat_dim", 8, *options)
    return ({path.name[:-4]: read_csv(str(path)) for path in (tmp_path / "out" / "csv_mean_20").iterdir()},
            read_videos({"video_anno": str(tmp_path / "new.json")}, "train"))


def test_features_at_another_rate_than_that_of_the_video_need_a_word(tmp_path, monkeypatch):
    """60 s at 30 frames a second; the snippets were taken at 25. Without a word, labels would land 15 % off."""
    entry = {"duration_second": 60.0, "duration_frame": 1800, "subset": "train",
             "annotations": [{"segment": [30.0, 45.0], "label": "x"}]}
    raw = int(60 * 25 / 16)         # 93 snippets
    with pytest.raises(UserError, match=r"v_a: 93 snippets of 16 frames are 1488 frames, but the video has 1800, so "
                                        r"they would cover 83 % of it: .*--feature_fps"):
        prepared(tmp_path / "1", monkeypatch, {"v_a": entry}, {"v_a": raw})
    found, videos = prepared(tmp_path / "2", monkeypatch, {"v_a": entry}, {"v_a": raw}, "--feature_fps", 25)
    np.testing.assert_allclose(found["v_a"], plain_rescaling(np.random.RandomState(raw).randn(raw, 8), 60 * 25, 60, 20),
                               rtol=1e-10, atol=1e-10)
    assert videos["v_a"].feature_seconds == pytest.approx(93 * 16 / 25)
    assert videos["v_a"].proposal_seconds == pytest.approx(93 * 16 / 25, rel=0.02)
    with pytest.raises(UserError, match=r"at --feature_fps 50"):
        prepared(tmp_path / "3", monkeypatch, {"v_a": entry}, {"v_a": raw}, "--feature_fps", 50)
    _, videos = prepared(tmp_path / "4", monkeypatch, {"v_a": entry}, {"v_a": raw}, "--coverage", 0.8, 1)
    assert videos["v_a"].feature_seconds == pytest.approx(93 * 16 / 1800 * 60)


def test_data_without_frames_are_covered_as_a_whole(tmp_path, monkeypatch):
    """Sensors and sound: every form of annotations, with and without v_, and no frame count anywhere."""
    entry = {"duration": 40.0, "subset": "train", "annotations": []}
    entries = {"database": dict.fromkeys(("a", "v_b", "c"), entry)}
    found, videos = prepared(tmp_path, monkeypatch, entries, {"v_a": 50, "b": 7})
    for name, count in (("a", 50), ("v_b", 7)):         # as they are annotated
        raw = np.random.RandomState(count).randn(count, 8)
        np.testing.assert_allclose(found[name], plain_rescaling(raw, count * 16, 40, 20), rtol=1e-10, atol=1e-10)
    assert {name: video[:3] for name, video in videos.items()} == dict.fromkeys(("a", "v_b", "c"), (40.0, 40.0, 40.0))


def test_raw_features_are_never_overwritten(tmp_path, monkeypatch):
    (tmp_path / "csv_mean_20").mkdir()
    np.save(str(tmp_path / "csv_mean_20" / "v_a.npy"), np.ones((5, 6)))
    with pytest.raises(UserError, match="over the raw ones of --input"):
        run(monkeypatch, "--input", tmp_path / "csv_mean_20", "--output", tmp_path, "--method", "linear",
            "--temporal_scale", 20)
    assert os.listdir(str(tmp_path / "csv_mean_20")) == ["v_a.npy"]


def plain_covering(raw, stride, fps, seconds, size):
    """Three samples in each of T parts of the whole video, each between the two rows whose centres are nearest."""
    centre = [(i + 0.5) * stride / fps for i in range(len(raw))]
    rows = []
    for part in range(size):
        samples = []
        for k in range(3):
            x = (part + k / 2) * seconds / size
            if len(raw) == 1 or x <= centre[0]:
                samples.append(raw[0])
            elif x >= centre[-1]:
                samples.append(raw[-1])
            else:
                i = max(i for i, c in enumerate(centre) if c <= x)
                fraction = (x - centre[i]) / (centre[i + 1] - centre[i])
                samples.append((1 - fraction) * raw[i] + fraction * raw[i + 1])
        rows.append(np.mean(samples, axis=0))
    return np.array(rows)


@pytest.mark.parametrize("snippets", [1, 2, 3, 8, 60])
@pytest.mark.parametrize("stride, fps", [(16, 25.0), (4, 12.5), (7.5, 29.97)])
def test_extracted_features_cover_the_whole_video_at_their_times(tmp_path, monkeypatch, rng, snippets, stride, fps):
    """... also where there are as many snippets as numbers, and without annotations."""
    raw, seconds = rng.randn(snippets, 8).astype(np.float32), (snippets + 0.7) * stride / fps
    os.mkdir(str(tmp_path / "raw"))
    np.save(str(tmp_path / "raw" / "v_a.npy"), raw)
    extracted.write_lengths(str(tmp_path / "raw"), {
        "v_a": extracted.Length(seconds, round(seconds * fps), fps, snippets, stride)})
    (tmp_path / "raw" / "features.json").write_text(
        '{"backbone": "x", "snippet_frames": 16, "snippet_stride": 16}')
    monkeypatch.chdir(str(tmp_path))
    (tmp_path / "anno.json").write_text(json.dumps({"a": {
        "duration_second": 9, "duration_frame": 90, "feature_frame": 80, "annotations": []}}))
    run(monkeypatch, "--input", "raw", "--output", "out", "--temporal_scale", "13", "--video_anno", "anno.json",
        "--write_anno", "new.json")
    np.testing.assert_allclose(read_csv("out/csv_mean_13/a.csv"), plain_covering(raw, stride, fps, seconds, 13),
                               atol=1e-5)
    written = json.loads((tmp_path / "new.json").read_text())["a"]
    assert written == {"duration_second": pytest.approx(seconds, abs=1e-6), "annotations": []}
    assert os.path.exists("out/csv_mean_13/features.json")
    run(monkeypatch, "--input", "raw", "--output", "other", "--temporal_scale", "13")
    np.testing.assert_array_equal(read_csv("other/csv_mean_13/v_a.csv"), read_csv("out/csv_mean_13/a.csv"))


def test_extracted_features_know_their_rate_and_are_complete(tmp_path, monkeypatch):
    for name in ("a", "b"):
        np.save(str(tmp_path / (name + ".npy")), np.zeros((3, 8)))
    extracted.write_lengths(str(tmp_path), {"a": extracted.Length(2.0, 50, 25.0, 3, 16.0)})
    (tmp_path / "features.json").write_text('{"backbone": "x", "snippet_frames": 16, "snippet_stride": 16}')
    monkeypatch.chdir(str(tmp_path))
    with pytest.raises(UserError, match=r"--feature_fps 5, but videos\.csv in \. has the rate of each video"):
        run(monkeypatch, "--input", ".", "--output", "out", "--feature_fps", "5")
    with pytest.raises(UserError, match="lacks 1 of 2 videos"):
        run(monkeypatch, "--input", ".", "--output", "out")
