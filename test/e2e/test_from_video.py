"""tools/extract_features.py as a process: killed, out of disk, twice at once, then the features' way to proposals."""
import json
import os
import resource
import subprocess
import sys
import time

import backbones
import clips
import numpy as np
import pytest
from conftest import ROOT

for _package in ("av", "onnxruntime", "onnx"):
    pytest.importorskip(_package, reason="videos need %s (requirements-video.txt)" % _package)

VIDEOS = 12


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with videos, a backbone, and out/, the features of an undisturbed run."""
    folder = tmp_path_factory.mktemp("video")
    os.mkdir(str(folder / "videos"))
    for number in range(VIDEOS):
        clips.write(folder / "videos" / ("v_%02d.mp4" % number), 120 + number, 25, bf=2)
    backbones.onnx_file(folder / "net.onnx", ["n", 16, 3, 24, 32], size=8)
    done = extract(folder, "out")
    assert done.returncode == 0, done.stderr
    return folder


def command(folder, output):
    return [sys.executable, os.path.join(ROOT, "tools", "extract_features.py"), str(folder / "videos"), "--backbone",
            str(folder / "net.onnx"), "--output", str(folder / output), "--device", "cpu"]


def extract(folder, output, **more):
    return subprocess.run(command(folder, output), capture_output=True, text=True, check=False, **more)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in os.listdir(str(folder)) if not name.startswith(".")}


def check_whole(folder):
    """Every file has its final content, and each row its file. Returns the number of rows."""
    for name in os.listdir(str(folder)):
        if name.endswith(".npy"):
            assert np.load(str(folder / name)).shape[1] == 8
    rows = (folder / "videos.csv").read_text().splitlines() if (folder / "videos.csv").exists() else ["header"]
    assert all(row.count(",") == 5 and os.path.exists(str(folder / (row.split(",")[0] + ".npy"))) for row in rows[1:])
    return len(rows) - 1


def wait_for_rows(folder, number, process):
    while process.poll() is None:
        if (folder / "videos.csv").exists() and len((folder / "videos.csv").read_text().splitlines()) > number:
            return
        time.sleep(0.005)


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_killed_and_started_again_it_is_as_if_nothing_had_been(job, rows):
    output = "killed%d" % rows
    process = subprocess.Popen(command(job, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_rows(job / output, rows, process)
    process.kill()
    process.wait()
    assert check_whole(job / output) >= rows
    done = extract(job, output)
    assert done.returncode == 0 and "features of 12 videos" in done.stdout
    assert contents(job / output) == contents(job / "out")


def test_two_at_once_do_not_mix(job):
    first = subprocess.Popen(command(job, "twice"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_rows(job / "twice", 1, first)
    first.send_signal(19)           # SIGSTOP: it owns the folder, however long the second one takes
    second = extract(job, "twice")
    first.send_signal(18)
    assert second.returncode == 1 and "owns --output" in second.stderr and "Traceback" not in second.stderr
    assert first.wait() == 0 and contents(job / "twice") == contents(job / "out")


def test_a_full_disk_leaves_nothing_half_written(job):
    size = max(map(len, contents(job / "out").values())) - 100       # features.json does not fit

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    done = extract(job, "full", preexec_fn=limit)
    assert done.returncode == 1 and "cannot write" in done.stderr and "Traceback" not in done.stderr
    assert not os.path.exists(str(job / "full")) or contents(job / "full") == {}


def test_from_videos_to_proposals(job):
    """videos.csv serves prepare_features and predict.py as it is; proposals lie within the video."""
    def run(*arguments):
        done = subprocess.run([sys.executable, *map(str, arguments)], cwd=str(job), capture_output=True, text=True,
                              check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout
    (job / "actions.csv").write_text("video,label,start,end,subset\n" + "".join(
        "%02d,x,1,3,%s\n" % (number, "training" if number < 8 else "validation") for number in range(VIDEOS)))
    run(os.path.join(ROOT, "tools", "prepare_features.py"), "--input", "out", "--output", "data", "--temporal_scale",
        10, "--video_anno", "actions.csv", "--write_anno", "anno.json")
    assert json.loads((job / "anno.json").read_text())["07"] == {
        "subset": "training", "duration_second": 127 / 25, "annotations": [{"segment": [1, 3], "label": "x"}]}
    run(os.path.join(ROOT, "main.py"), "--mode", "full", "--data_path", "data", "--video_anno", "anno.json",
        "--temporal_scale", 10, "--feat_dim", 8, "--num_sample", 4, "--batch_size", 4, "--train_epochs", 1,
        "--device", "cpu", "--videos", "videos")
    assert "videos.html#" in (job / "output" / "report.html").read_text()
    assert "../videos/v_" in (job / "output" / "videos.html").read_text()
    assert (job / "checkpoint" / "features.json").read_bytes() == (job / "out" / "features.json").read_bytes()
    predict = os.path.join(ROOT, "tools", "predict.py")
    run(predict, "out/v_03.npy", "--output", "from_features.json")
    run(predict, "videos/v_03.mp4", "--output", "from_video.json", "--page", "pages/a.html", "--video_anno",
        "anno.json")
    found = json.loads((job / "from_features.json").read_text())["results"]["03"]
    assert json.loads((job / "from_video.json").read_text())["results"]["03"] == found
    assert 4 < max(one["segment"][1] for one in found) <= 123 / 25 + 1e-6
    page = (job / "pages" / "a.html").read_text()
    assert '"src": "../videos/v_03.mp4"' in page and '[1.0, 3.0, "x"]' in page

    (job / "videos" / "broken.mp4").write_text("no video")
    done = subprocess.run([sys.executable, predict, "videos", "--output", "all.json"], cwd=str(job),
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "left out: video videos/broken.mp4 cannot be read" in done.stdout
    assert "error: 1 of 13 videos could not be used" in done.stderr and "Traceback" not in done.stderr
    everything = json.loads((job / "all.json").read_text())["results"]
    assert len(everything) == VIDEOS and everything["03"] == found
    os.remove(str(job / "videos" / "broken.mp4"))

    os.rename(str(job / "net.onnx"), str(job / "moved.onnx"))
    for more, words in (([], "features.json names the backbone, but --backbone"), (["--backbone", "moved.onnx"], ""),
                        (["--backbone", backbones.onnx_file(job / "other.onnx", ["n", 16, 3, 24, 32], 8, seed=9)[0]],
                         "is not the one that made the features of")):
        done = subprocess.run([sys.executable, predict, "videos/v_03.mp4", *more], cwd=str(job), capture_output=True,
                              text=True, check=False)
        assert done.returncode == bool(words) and words in done.stderr and "Traceback" not in done.stderr
    os.rename(str(job / "moved.onnx"), str(job / "net.onnx"))
    os.remove(str(job / "checkpoint" / "features.json"))
    done = subprocess.run([sys.executable, predict, "videos/v_03.mp4"], cwd=str(job), capture_output=True, text=True,
                          check=False)
    assert done.returncode == 1 and "there is no features.json beside --checkpoint" in done.stderr
