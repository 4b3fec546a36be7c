"""docs/datasets/hapt.py on recordings of its form: windows, actions and features."""
import json
import os
import subprocess
import sys

import numpy as np
from conftest import ROOT

from bmn.data.feature_files import read_csv

SECONDS, RATE = 85, 50


def convert(folder, *options):
    return subprocess.run([sys.executable, os.path.join(ROOT, "docs", "datasets", "hapt.py"), *options],
                          cwd=str(folder), capture_output=True, text=True, check=False)


def test_recordings_become_a_data_set(tmp_path, rng):
    raw = tmp_path / "raw"
    raw.mkdir()
    for experiment, user in ((1, 1), (2, 2)):           # person 2 is of the test part
        for kind in ("acc", "gyro"):
            np.savetxt(str(raw / ("%s_exp%02d_user%02d.txt" % (kind, experiment, user))),
                       rng.randn(SECONDS * RATE, 3) + (0, 0, kind == "acc"))
    (raw / "labels.txt").write_text("1 1 1 500 1000\n1 1 5 1000 2000\n1 1 7 3400 3600\n2 2 12 100 300\n")
    done = convert(tmp_path, "--raw", "raw", "--output", "out", "--temporal_scale", "8")
    assert done.returncode == 0, done.stderr
    # training: a window every 20 seconds, 0 and 20; validation: 0 alone, because 30 would end after the recording
    assert "2 training and 1 validation windows" in done.stdout
    videos = json.loads((tmp_path / "out" / "activitynet_annotations" / "anet_anno_action.json").read_text())
    assert videos["v_exp01_user01_0000"]["annotations"] == [{"segment": [10.0, 20.0], "label": "walking"}]
    assert videos["v_exp01_user01_0020"]["annotations"] == [{"segment": [48.0, 52.0], "label": "stand to sit"}]
    assert videos["v_exp02_user02_0000"]["annotations"] == [{"segment": [2.0, 6.0], "label": "lie to stand"}]
    assert {(one["duration_second"], one["duration_frame"]) for one in videos.values()} == {(60.0, 960)}
    listed = (tmp_path / "out" / "activitynet_annotations" / "video_info_new.csv").read_text()
    assert listed == "video,subset\n" + "".join("%s,%s\n" % (name, one["subset"]) for name, one in videos.items())
    tables = [read_csv(str(tmp_path / "out" / "activitynet_feature_cuhk" / "csv_mean_8" / (name + ".csv")))
              for name in videos if videos[name]["subset"] == "training"]
    rows = np.concatenate(tables)
    assert rows.shape == (16, 40)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-4)      # standardised by the people of the training
    assert np.median(abs(rows.std(0) - 1)) < 0.01


def test_another_folder_is_refused(tmp_path):
    done = convert(tmp_path, "--raw", ".", "--output", "out")
    assert done.returncode == 1 and done.stderr.startswith("error: --raw . has no labels.txt") and done.stderr.count(
        "\n") == 1
