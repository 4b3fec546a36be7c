import json
import os
import pathlib

import check_data
import numpy as np
import pytest
import small_data

from bmn.errors import UserError
from opts import parse_opt


def run(opt):
    names = ("video_info", "video_anno", "data_path", "temporal_scale", "feat_dim")
    check_data.main(parse_opt(["--%s=%s" % (name, opt[name]) for name in names], more=[check_data.PLOT]))


def test_good_data_passes_and_nothing_is_written(tmp_path, capsys):
    opt = small_data.make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    run(opt)
    out = capsys.readouterr().out
    assert "5 videos (training 3, validation 2)" in out and "the reference's form, 5 videos" in out
    assert "train: 3 videos of 10 to 10 s (median 10 s), 3 actions of 1 class (1.0 a video), of 3 to 3 s" in out
    assert "all 5 videos of train and validation can be used: T = 10, C = 6" in out and "odd" not in out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("subset, other", [("validation", "train"), ("train", "validation")])
def test_a_single_subset_is_looked_at_too(tmp_path, capsys, subset, other):
    opt = small_data.make(tmp_path)
    with open(opt["video_info"]) as handle:
        rows = [line.split(",")[0] for line in handle.read().split()[1:]]
    with open(opt["video_info"], "w") as handle:
        handle.write("video,subset\n" + "".join("%s,%s\n" % (name, subset) for name in rows))
    run(opt)
    out = capsys.readouterr().out
    assert "%s: 5 videos of 10 to 10 s" % subset in out
    assert "%s: --%s_subset " % (other, {"train": "training"}.get(other, other)) in out
    assert "all 5 videos of %s can be used: T = 10, C = 6" % subset in out
    assert ("proposals that look at no video" in out) == (subset == "validation")
    with open(opt["video_info"], "w") as handle:
        handle.write("video,subset\n" + "".join("%s,test\n" % name for name in rows))
    with pytest.raises(UserError, match=r"--training_subset training: .* has no video of that subset, but of 'test'"):
        run(opt)


def test_lengths_are_no_powers_of_ten():
    assert check_data.spread([9.7512, 1340.4, 58642.2]) == "9.75 to 58642 s (median 1340 s)"
    assert check_data.spread([0.2, 15, 118.123]) == "0.2 to 118.1 s (median 15 s)"


def test_everything_that_is_wrong_is_listed(tmp_path, capsys):
    opt = small_data.make(tmp_path)
    folder = os.path.join(opt["data_path"], "csv_mean_10")
    os.remove(os.path.join(folder, "v_d.csv"))
    small_data.write_csv(os.path.join(folder, "v_b.csv"), np.ones((9, 6)))
    small_data.write_csv(os.path.join(folder, "v_c.csv"), np.full((10, 6), np.nan))
    with pytest.raises(UserError, match="3 of 5 videos cannot be used"):
        run(opt)
    out = capsys.readouterr().out
    assert "features of 4 of 5 videos" in out and "it has those of 4 videos" in out
    for part in ("v_b.csv has 9 rows", "v_c.csv has nan", "video v_d has no features"):
        assert part in out


@pytest.mark.parametrize("change,said", [
    ({"annotations": []}, "1 video without actions: all labels are zero (v_b)"),
    ({"annotations": [{"segment": [4, 4], "label": "x"}]}, "1 action without length: "),
    ({"annotations": [{"segment": [5, 4], "label": "x"}]}, "1 action with an end before the start: left out"),
    ({"annotations": [{"segment": [11, 14], "label": "x"}]}, "1 action outside the video: no labels"),
    ({"annotations": [{"segment": [9.7, 9.9], "label": "x"}]}, "1 action with a start after the end of the features"),
    ({"annotations": [{"segment": [2, 19], "label": "x"}]}, "1 action with an end more than a second after"),
    ({"annotations": [{"segment": [2, 4]}]}, "1 action without a label"),
    ({"feature_frame": 16}, "1 video with features for less than 95 % or more than 105 %"),
    ({"annotations": [{"segment": [-9, 4], "label": "x"}]}, "odd: 1 action with a start before 0 s: the labels"),
])
def test_what_is_odd_is_counted_and_is_no_error(tmp_path, capsys, change, said):
    opt = small_data.make(tmp_path)
    with open(opt["video_anno"]) as handle:
        videos = json.load(handle)
    videos["v_b"].update(change)
    with open(opt["video_anno"], "w") as handle:
        json.dump(videos, handle)
    with open(opt["video_info"], "a") as handle:
        handle.write("v_a,training\n")
    run(opt)
    out = capsys.readouterr().out
    assert said in out and "1 video listed more than once: counted once (v_a)" in out


def check_windows(opt, *more):
    names = ("video_anno", "training_subset", "validation_subset", "data_path", "feat_dim")
    check_data.main(parse_opt(["--%s=%s" % (name, opt[name]) for name in names] + list(more), more=[check_data.PLOT]))


def test_what_windows_cut_off_is_counted(tmp_path, capsys):
    opt = small_data.make_long(tmp_path, rows=(60, 9, 40, 5))
    check_windows(opt, "--window", "10", "--max_duration", "4")
    out = capsys.readouterr().out
    # v_0 has a window every five rows, v_1 and v_3 one each
    assert "train: 12 windows of 10 positions, each of 1 to 1 s; in 2 of them lies an action" in out
    assert "validation: 8 windows of 10 positions" in out
    # v_0 and v_2 have an action of half their length
    assert out.count("odd: 1 action longer than a window (10): no proposal matches them whole") == 2
    assert out.count("odd: 1 action in no window by --window_inside 0.9: no labels") == 2
    assert "all 4 videos of train and validation can be used: T = 10, C = 6" in out


def test_features_at_their_own_rate_are_told(tmp_path, capsys):
    opt = small_data.make_long(tmp_path, rows=(60, 9, 40, 5))
    with pytest.raises(UserError, match=r"features of 4 videos have from 5 to 60 rows of --feat_dim 6 .*--window$"):
        check_windows(opt, "--temporal_scale", "100")


def test_a_long_list_of_problems_is_cut(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check_data, "MOST", 2)
    opt = small_data.make(tmp_path)
    with pytest.raises(UserError, match="5 of 5 videos cannot be used"):
        run(dict(opt, feat_dim=8))
    assert "  ... and 3 more" in capsys.readouterr().out


@pytest.mark.parametrize("long", [False, True])
def test_what_is_left_out_is_no_problem(tmp_path, capsys, long):
    """With --skip_missing a run goes on without it, unless nothing is left."""
    opt = small_data.make_long(tmp_path) if long else small_data.make(tmp_path)
    files = sorted(pathlib.Path(opt["data_path"]).rglob("v_*"))
    arguments = ["--%s=%s" % (name, opt[name]) for name in ("video_info", "video_anno", "data_path", "feat_dim", *(
        ("window", "training_subset", "validation_subset") if long else ("temporal_scale",)))]
    files[1].unlink()
    with pytest.raises(UserError, match=r"1 of \d videos cannot be used"):
        check_data.main(parse_opt(arguments, more=[check_data.PLOT]))
    check_data.main(parse_opt([*arguments, "--skip_missing"], more=[check_data.PLOT]))
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith("%d of %d videos can be used (--skip_missing): T = 10" % (len(files) - 1, len(files)))
    assert sum("has no features in" in line for line in out) == 2
    for file in files[2:] + files[:1]:
        file.unlink()
    with pytest.raises(UserError, match="cannot be used"):
        check_data.main(parse_opt([*arguments, "--skip_missing"], more=[check_data.PLOT]))
