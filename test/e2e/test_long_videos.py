"""Long videos in windows, as a user would run them: the whole job, several ranks, kills, other programs' files."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, Workshop, torchrun

from bmn.machine.device import TORCH

OPTIONS = ("--device", "cpu", "--video_anno", "data/thumos14_annotations/thumos14.json",
           "--data_path", "data/thumos14_features", "--training_subset", "Validation", "--validation_subset", "Test",
           "--feat_dim", "8", "--window", "32", "--max_duration", "12", "--window_subsample", "2",
           "--protocol", "thumos14", "--num_sample", "4", "--kept", "150", "--num_workers", "0", "--batch_size", "12",
           "--opt_level", "O0")
STILL = ("--finetune", "1", "--pth_path", "trained.pth.tar", "--training_lr", "1e-30", "--train_epochs", "1")
SECOND = 0.05       # between two looks at a file


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory):
    """data/ of long videos, trained.pth.tar, and what --mode full gave with it on one process."""
    workshop = Workshop(tmp_path_factory.mktemp("long"))
    run(workshop, "tools/make_sample_data.py", "--kind", "thumos14", "--videos", 12, "--feat_dim", 8)
    run(workshop, "main.py", *OPTIONS, "--mode", "train", "--train_epochs", 1)
    os.rename(str(workshop.folder / "checkpoint" / "BMN_best.pth.tar"), str(workshop.folder / "trained.pth.tar"))
    workshop.printed = run(workshop, "main.py", *OPTIONS, *STILL, "--mode", "full")
    return workshop


@pytest.fixture
def workshop(tmp_path, long_videos):
    for name in ("data", "trained.pth.tar"):
        (tmp_path / name).symlink_to(long_videos.folder / name)
    return Workshop(tmp_path)


def run(workshop, script, *args):
    """What a script prints; it must succeed."""
    process = workshop.run(script, *args)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def refusal(process):
    assert process.returncode == 1
    line, = process.stderr.splitlines()
    return line


def test_the_whole_job(long_videos):
    output, printed = long_videos.folder / "output", long_videos.printed
    assert "positions" in printed and [line for line in printed.splitlines() if line.startswith("AR@1000 is ")]
    results = json.loads((output / "result_proposal.json").read_text())["results"]
    database = json.loads(long_videos.text("data/thumos14_annotations/thumos14.json"))["database"]
    assert set(results) == {name for name, entry in database.items() if entry["subset"] == "Test"}
    for name, rows in results.items():
        seconds = database[name]["duration"]
        lengths = [row["segment"][1] - row["segment"][0] for row in rows]
        assert 0 < len(rows) <= 150 and min(row["segment"][0] for row in rows) >= 0
        # D positions of two rows, each of five frames
        assert max(lengths) <= 12 * 2 * 5 / database[name]["fps"] * 1.01
        assert seconds / 2 < max(row["segment"][1] for row in rows) <= seconds + 1e-6
    assert (output / "report.html").stat().st_size > 10000 and not (output / "BMN_results").exists()


@pytest.mark.skipif(TORCH < (2, 0), reason="make test-legacy starts several processes on PyTorch 1.5, 1.8")
@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_give_what_one_process_gives(workshop, long_videos, processes):
    process = subprocess.run([sys.executable, *torchrun(processes), os.path.join(ROOT, "main.py"), *OPTIONS, *STILL,
                              "--mode", "full"], cwd=str(workshop.folder), env=workshop.environment(),
                             capture_output=True, text=True, timeout=600, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    one, other = (folder / "output" / "result_proposal.json" for folder in (workshop.folder, long_videos.folder))
    assert one.read_bytes() == other.read_bytes()
    one, other = (json.loads(at.text("checkpoint/metrics.jsonl"))["validation"] for at in (workshop, long_videos))
    assert one == other


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(workshop):
    """SIGKILL in the second epoch, SIGTERM in the third: the same losses as without."""
    options = [sys.executable, os.path.join(ROOT, "main.py"), *OPTIONS, "--mode", "train", "--train_epochs", "3",
               "--log_seconds", "1"]
    run(workshop, "main.py", *options[2:], "--checkpoint_path", "whole")
    record = workshop.folder / "parts" / "metrics.jsonl"
    command = [*options, "--checkpoint_path", "parts", "--resume", "auto"]
    for epochs, number, ends in ((1, signal.SIGKILL, -9), (2, signal.SIGTERM, 143)):
        process = subprocess.Popen(command, cwd=str(workshop.folder), env=workshop.environment(),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while process.poll() is None and not (record.exists() and len(record.read_text().splitlines()) >= epochs):
                time.sleep(SECOND)
            process.send_signal(number)
            assert process.wait(timeout=300) == ends
        finally:
            process.kill()
            process.wait()
    assert "2 of 3 epochs are done" in run(workshop, "main.py", *command[2:])
    measured = ("fps", "time", "data_time", "peak_memory_mb")
    one, other = ([{name: value for name, value in json.loads(line).items() if name not in measured}
                   for line in workshop.text(folder + "/metrics.jsonl").splitlines()] for folder in ("parts", "whole"))
    assert one == other and len(one) == 3


def test_a_network_of_windows_is_served_only_with_them(workshop):
    line = refusal(workshop.run("main.py", *OPTIONS, "--mode", "inference", "--pth_path", "trained.pth.tar",
                                "--window", "0", "--window_subsample", "1", "--temporal_scale", "32"))
    assert "trained.pth.tar was made with --window 32, but here it is 0" in line
    line = refusal(workshop.run("main.py", *OPTIONS, "--mode", "inference", "--pth_path", "trained.pth.tar",
                                "--window_subsample", "1"))
    assert "was made with --window_subsample 2, but here it is 1" in line
    line = refusal(workshop.run("main.py", *OPTIONS, "--mode", "inference", "--pth_path", "trained.pth.tar",
                                "--max_duration", "11"))
    assert "was made with --max_duration 12, but here it is 11" in line


def test_predict_gives_the_proposals_of_the_run(workshop, long_videos):
    """From the checkpoint alone: it says W, D and k. Also from CSV files, which hold the same numbers."""
    run(workshop, "tools/predict.py", "data/thumos14_features", "--video_anno",
        "data/thumos14_annotations/thumos14.json", "--checkpoint", "trained.pth.tar", "--output", "all.json", "--plot",
        "pictures", "--top", 1)
    ours = json.loads(workshop.text("all.json"))["results"]
    theirs = json.loads((long_videos.folder / "output" / "result_proposal.json").read_text())["results"]
    assert set(theirs) < set(ours)
    for name, rows in theirs.items():       # batches of other sizes round in another way
        assert [row["score"] for row in ours[name]] == pytest.approx([row["score"] for row in rows], rel=1e-4)
    assert (workshop.folder / "pictures" / (name + ".png")).stat().st_size > 10000


def test_onnx_gives_the_proposals_of_the_checkpoint(workshop, long_videos):
    pytest.importorskip("onnxruntime", reason="needs the Python package onnxruntime")
    run(workshop, "tools/export_onnx.py", "trained.pth.tar", "bmn.onnx", "--batch", 0)
    run(workshop, "main.py", *OPTIONS, "--mode", "inference", "--onnx", "bmn.onnx")
    ours = json.loads(workshop.text("output/result_proposal.json"))["results"]
    theirs = json.loads((long_videos.folder / "output" / "result_proposal.json").read_text())["results"]
    for name, rows in theirs.items():
        np.testing.assert_allclose([row["score"] for row in ours[name]], [row["score"] for row in rows], rtol=1e-3)
    line = refusal(workshop.run("main.py", *OPTIONS, "--mode", "inference", "--onnx", "bmn.onnx", "--window_subsample",
                                "1"))
    assert "bmn.onnx is a network of --window_subsample 2, but here it is 1" in line


def test_a_wrong_stride_is_refused_before_the_training(workshop):
    line = refusal(workshop.run("main.py", *OPTIONS, "--feature_stride", "1.5"))
    assert "--feature_stride 1.5" in line and "do not cover their video" in line
    assert not (workshop.folder / "checkpoint" / "BMN_best.pth.tar").exists()
