import json
import os

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
    ({"annotations": []}, "1 videos have no action: all their labels are zero (v_b)"),
    ({"annotations": [{"segment": [4, 4], "label": "x"}]}, "1 actions have no length: "),
    ({"annotations": [{"segment": [5, 4], "label": "x"}]}, "1 actions end before they start: they are left out"),
    ({"annotations": [{"segment": [11, 14], "label": "x"}]}, "1 actions lie outside their video: they get no labels"),
    ({"annotations": [{"segment": [9.7, 9.9], "label": "x"}]}, "1 actions begin after the end of their features"),
    ({"annotations": [{"segment": [2, 19], "label": "x"}]}, "1 actions end more than a second after"),
    ({"annotations": [{"segment": [2, 4]}]}, "1 actions have no label"),
    ({"feature_frame": 16}, "1 videos have features for less than 95 % or more than 105 %"),
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
    assert said in out and "1 videos are listed more than once: they count once (v_a)" in out
