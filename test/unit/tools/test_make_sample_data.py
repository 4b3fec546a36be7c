"""The sample data has the real layout, depends on the seed alone, and holds something to learn."""
import json

import make_sample_data as sample
import numpy as np
import pandas as pd
import pytest

from bmn.data.annotations import read_videos
from bmn.data.feature_files import write_csv
from bmn.errors import UserError


@pytest.fixture(scope="module")
def videos():
    return sample.make_videos(200, seed=1)


def test_every_kind_of_video_is_there(videos):
    subsets = [subset for subset, _, _ in videos.values()]
    assert [subsets.count(subset) for subset in ("training", "validation", "testing")] == [120, 60, 20]
    counts = {len(entry["annotations"]) for subset, _, entry in videos.values() if subset != "testing"}
    assert counts == {1, 2, 3, 4, 5} or counts == {1, 2, 3, 4}
    labels = {a["label"] for _, _, entry in videos.values() for a in entry["annotations"]}
    assert len(labels) == len(sample.CLASSES)
    overlapping = 0
    for subset, _, entry in videos.values():
        assert (subset == "testing") == (not entry["annotations"])
        for annotation, following in zip(entry["annotations"], entry["annotations"][1:]):
            overlapping += following["segment"][0] < annotation["segment"][1]
        for annotation in entry["annotations"]:
            start, end = annotation["segment"]
            assert 0 <= start < end <= entry["duration_second"]
    assert overlapping > 5


def test_files_are_read_back(videos, tmp_path):
    sample.write_annotations(str(tmp_path), videos)
    opt = {"video_info": str(tmp_path / "video_info_new.csv"), "video_anno": str(tmp_path / "anet_anno_action.json")}
    assert list(read_videos(opt, "validation")) == [name for name, video in videos.items() if video[0] == "validation"]
    columns = list(pd.read_csv(opt["video_info"]).columns)
    assert columns == ["video", "numFrame", "seconds", "fps", "rfps", "subset", "featureFrame"]
    assert (tmp_path / "action_name.csv").read_text().startswith("action\nBeekeeping\n")

    name, (_, _, entry) = next(iter(videos.items()))
    features = sample.plant_features(name, entry, 16, 8, seed=1)
    write_csv(str(tmp_path / "x.csv"), features, digits=6)
    table = pd.read_csv(str(tmp_path / "x.csv"))
    assert list(table.columns) == ["f%d" % i for i in range(8)]
    np.testing.assert_allclose(table.values, features, rtol=1e-5)


def test_data_depends_on_the_seed_and_nothing_else(videos):
    assert json.dumps(sample.make_videos(200, seed=1)) == json.dumps(videos)
    assert list(sample.make_videos(200, seed=2)) != list(videos)
    name, (_, _, entry) = next(iter(videos.items()))
    first = sample.plant_features(name, entry, 20, 12, seed=1)
    assert np.array_equal(first, sample.plant_features(name, entry, 20, 12, seed=1))
    assert not np.array_equal(first, sample.plant_features(name, entry, 20, 12, seed=2))


def test_actions_show_in_the_features_and_distractors_do_not_mimic_them(videos):
    """Along the direction common to all actions, features inside actions stand out by more than the noise."""
    direction = sample._pattern(1, "action", 32)
    inside, outside = [], []
    for name, (subset, _, entry) in videos.items():
        if subset == "training":
            level = sample.plant_features(name, entry, 50, 32, seed=1) @ direction / np.linalg.norm(direction)
            seconds = entry["feature_frame"] / entry["duration_frame"] * entry["duration_second"]
            at = (np.arange(50) + 0.5) / 50 * seconds
            acting = np.any([(at > a["segment"][0]) & (at < a["segment"][1]) for a in entry["annotations"]], axis=0)
            inside.extend(level[acting])
            outside.extend(level[~acting])
    assert np.mean(inside) - np.mean(outside) > 2 * np.std(outside)


def test_real_annotations_can_be_used(shared):
    videos = sample.take_videos(shared + "/activitynet_annotations", 300, seed=0)
    subsets = [subset for subset, _, _ in videos.values()]
    assert len(videos) == 300 and {"training", "validation", "testing"} == set(subsets)
    assert subsets.count("training") > subsets.count("validation") > 40


def test_more_videos_than_there_are_are_refused(shared):
    with pytest.raises(UserError, match=r"--videos 99999 is more than the \d+ videos of .*: give a smaller number"):
        sample.take_videos(shared + "/activitynet_annotations", 99999, 0)
