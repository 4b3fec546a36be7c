"""Rows name the frames that they came from; a folder of features is whole at any moment."""
import json
import os
from fractions import Fraction

import clips
import numpy as np
import pytest

pytest.importorskip("av", reason="videos need PyAV (requirements-video.txt)")

from bmn import extracted
from bmn.errors import UserError
from bmn.video import extraction
from bmn.video.extraction import Recipe, Sampling
from bmn.video.snippets import indices


def recipe(length=16, stride=16, fps=None, looked_at=None, batch=3):
    return Recipe.of(clips.Numbers(), Sampling(length, stride, fps), looked_at, batch, 1)


def features(path, how):
    (_, found), = extraction.features_of({"a": str(path)}, how)
    if isinstance(found, UserError):
        raise found
    return found


@pytest.mark.parametrize("case", range(25))
def test_rows_name_the_frames_that_they_came_from(tmp_path, case, rng):
    rng.seed(case)
    fps = ["25", "30000/1001", "12.5"][case % 3]
    kind, options = [("mp4", {"bf": 3}), ("mkv", {"bf": 2}), ("mp4", {"bf": 0})][rng.randint(3)]
    frames, (length, stride) = int(rng.randint(1, 120)), rng.randint(1, 20, 2)
    looked_at = int(rng.randint(1, length + 1))
    clips.write(tmp_path / ("a." + kind), frames, fps, **options)
    found = features(tmp_path / ("a." + kind), recipe(int(length), int(stride), looked_at=looked_at))
    want = [np.clip(indices(row, Sampling(length, stride), looked_at), 0, frames - 1)
            for row in range(max(1, frames // stride))]
    np.testing.assert_array_equal(found.rows, want)
    assert found.rows.dtype == np.float32
    assert found.length.frames == frames and found.length.snippets == len(want)
    assert found.length.seconds == pytest.approx(frames / float(Fraction(fps)), abs=2e-3)
    assert found.length.stride == min(stride, frames)


@pytest.mark.parametrize("rate", [5, 12.5, 50])
def test_another_rate_names_the_frames_of_its_times(tmp_path, rate):
    clips.write(tmp_path / "a.mp4", 100, 25)
    found = features(tmp_path / "a.mp4", recipe(4, 4, rate))
    middles = (np.arange(int(4 * rate)) + 0.5) / rate
    want = np.floor(middles * 25 + 1e-9)[:int(4 * rate) // 4 * 4].reshape(-1, 4)
    np.testing.assert_array_equal(found.rows, want)
    assert found.length.stride == pytest.approx(4 * 25 / rate)


def test_at_a_variable_rate_rows_are_equal_steps_of_time(tmp_path):
    times = [Fraction(number, 30) for number in range(60)] + [2 + Fraction(number, 6) for number in range(60)]
    clips.write(tmp_path / "a.mp4", fps=30, times=times, bf=2)
    found = features(tmp_path / "a.mp4", recipe(1, 1))
    at = (np.arange(len(found.rows)) + 0.5) * found.length.seconds / found.length.frames
    want = np.searchsorted(np.array(times, float), at, side="right") - 1
    np.testing.assert_array_equal(found.rows[:, 0], want)
    assert found.length.seconds == pytest.approx(12, abs=0.2) and found.length.frames == 120


def videos_in(folder, *names):
    os.makedirs(str(folder), exist_ok=True)
    for number, name in enumerate(names):
        clips.write(os.path.join(str(folder), name), 40 + 20 * number)
    return extraction.find_videos(str(folder))


def extract(path, videos, how=None, log=lambda line: None, check=lambda: None):
    os.makedirs(str(path), exist_ok=True)
    how = how or recipe()
    folder = extraction.Folder(str(path), how.description())
    return extraction.extract(videos, folder, how, 1.0, check, log)


def test_a_folder_is_extracted_and_a_bad_video_stops_nothing(tmp_path):
    videos = videos_in(tmp_path / "in", "b.mp4", "a.mkv", "sub.mp4")
    (tmp_path / "in" / "broken.mp4").write_text("no video")
    (tmp_path / "in" / "notes.txt").write_text("no video")
    videos = extraction.find_videos(str(tmp_path / "in"))
    flaws = extract(tmp_path / "out", videos)
    assert len(flaws) == 1 and "broken.mp4 cannot be read" in flaws[0]
    lengths = extracted.read_lengths(str(tmp_path / "out"))
    assert {name: one.frames for name, one in lengths.items()} == {"b": 40, "a": 60, "sub": 80}
    assert np.load(str(tmp_path / "out" / "a.npy")).shape == (3, 16)
    lines = (tmp_path / "out" / "videos.csv").read_text().splitlines()
    assert lines[:2] == ["video,seconds,frames,fps,snippets,stride", "a,2.400000,60,25,3,16"]
    assert json.loads((tmp_path / "out" / "features.json").read_text())["snippet_stride"] == 16


def test_what_is_there_is_kept_and_what_is_half_there_is_not(tmp_path):
    videos = videos_in(tmp_path / "in", "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    extract(tmp_path / "out", videos)
    for name in "abcd":
        np.save(str(tmp_path / "out" / (name + ".npy")), np.full((3, 16) if name != "a" else (2, 16), -1.0))
    os.remove(str(tmp_path / "out" / "b.npy"))
    with open(str(tmp_path / "out" / "c.npy"), "r+b") as handle:
        handle.truncate(300)
    rows = extracted.read_lengths(str(tmp_path / "out"))
    del rows["a"]                               # killed between the file and its row
    extracted.write_lengths(str(tmp_path / "out"), {**rows, "d": rows["d"]._replace(snippets=3)})
    lines = []
    assert extract(tmp_path / "out", videos, log=lines.append) == []
    assert lines[0] == "features of 1 of 4 videos are there already"
    assert (np.load(str(tmp_path / "out" / "d.npy")) == -1).all()
    for name in "abc":
        assert np.load(str(tmp_path / "out" / (name + ".npy"))).min() == 0


def test_features_of_another_kind_are_not_mixed(tmp_path):
    videos = videos_in(tmp_path / "in", "a.mp4")
    extract(tmp_path / "out", videos)
    with pytest.raises(UserError, match=r"extracted in another way \(snippet_stride: 16 there, 8 here\)"):
        extract(tmp_path / "out", videos, recipe(16, 8))
    (tmp_path / "old").mkdir()
    np.save(str(tmp_path / "old" / "x.npy"), np.zeros((3, 3)))
    with pytest.raises(UserError, match=r"has x\.npy but no features\.json"):
        extract(tmp_path / "old", videos)


def test_nothing_half_written_on_a_full_disk(tmp_path, monkeypatch):
    videos = videos_in(tmp_path / "in", "a.mp4", "b.mp4")
    extract(tmp_path / "out", {"a": videos["a"]})
    save = np.save

    def full(handle, rows):
        save(handle, rows[:1])
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match=r"b\.npy \(No space left on device\)"):
        extract(tmp_path / "out", videos)
    assert sorted(os.listdir(str(tmp_path / "out"))) == ["a.npy", "features.json", "videos.csv"]
    assert list(extracted.read_lengths(str(tmp_path / "out"))) == ["a"]


def test_a_folder_that_another_process_has_taken_is_left_alone(tmp_path):
    def check():
        raise UserError("taken")
    with pytest.raises(UserError, match="taken"):
        extract(tmp_path / "out", videos_in(tmp_path / "in", "a.mp4"), check=check)
    assert os.listdir(str(tmp_path / "out")) == ["features.json"]


@pytest.mark.parametrize("names, words", [
    (["a.mp4", "a.mkv"], "would both have the features a.npy"), (["a.mp4", "v_a.mp4"], "both are video a"),
    (["x.txt"], r"holds no videos .* but files \*\.txt")])
def test_folders_that_cannot_be_extracted(tmp_path, names, words):
    for name in names:
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=words):
        extraction.find_videos(str(tmp_path))


def test_an_error_of_the_network_ends_the_decoder(tmp_path):
    import threading
    how = recipe(batch=1)
    how.backbone.vectors = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(extraction.features_of(videos_in(tmp_path / "in", "a.mp4", "b.mp4"), how))
    assert not [one for one in threading.enumerate() if one.name == "decoder"]


def test_an_error_of_the_program_in_the_decoder_is_raised(tmp_path):
    how = recipe()
    how.backbone.prepare = lambda image: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(extraction.features_of(videos_in(tmp_path / "in", "a.mp4"), how))


def test_numbers_that_are_not_finite_are_a_flaw(tmp_path):
    how = recipe()
    how.backbone.vectors = lambda batch: np.full((len(batch), 4), np.nan)
    flaw, = extract(tmp_path / "out", videos_in(tmp_path / "in", "a.mp4"), how)
    assert "not finite" in flaw and not (tmp_path / "out" / "a.npy").exists()


def test_a_video_whose_rows_cover_little_of_it_is_named(tmp_path):
    clips.write(tmp_path / "a.mp4", 31)
    found = features(tmp_path / "a.mp4", recipe())
    assert "only 52 % of its 31 frames lie in snippets of 16" in found.remark
    clips.write(tmp_path / "b.mp4", 9)
    found = features(tmp_path / "b.mp4", recipe())
    assert found.remark == "" and (found.length.snippets, found.length.stride) == (1, 9)


def test_the_frames_that_a_backbone_needs_are_not_to_be_chosen():
    with pytest.raises(UserError, match="--frames 4, but the backbone looks at 8"):
        Recipe.of(clips.Numbers(8), Sampling(), 4, 1, 1)
    with pytest.raises(UserError, match="--snippet_frames 4 is less than the 8"):
        Recipe.of(clips.Numbers(8), Sampling(4), None, 1, 1)
    assert Recipe.of(clips.Numbers(8), Sampling(), None, 1, 1).looked_at == 8
    assert Recipe.of(clips.Numbers(), Sampling(), None, 1, 1).looked_at == 16
