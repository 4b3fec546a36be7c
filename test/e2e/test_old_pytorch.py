"""PyTorch 1.5 and 1.8 beside the one that runs this: whole runs, and checkpoints that all of them read.

``make test-legacy`` names the old interpreters in BMN_OLD_PYTHONS.
"""
import itertools
import json
import os
import re
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL, Workshop

OLD = os.environ.get("BMN_OLD_PYTHONS", "").split(os.pathsep)
PYTHONS = [sys.executable] + OLD
COMMON = ("--device", "cpu") + SMALL + ("--num_workers", "0", "--batch_size", "8", "--opt_level", "O0")

pytestmark = pytest.mark.skipif(OLD == [""], reason="make test-legacy runs this, with PyTorch 1.5 and 1.8")


def start(python, folder, *args, launcher=()):
    """main.py under one of the interpreters; returns the finished process."""
    command = [python, *launcher, os.path.join(ROOT, "main.py"), *COMMON, *map(str, args)]
    return subprocess.run(command, cwd=str(folder), env=Workshop.environment(), capture_output=True, text=True,
                          timeout=300, check=False)


def run(python, folder, *args, launcher=()):
    """The output of main.py, which must succeed."""
    done = start(python, folder, *args, launcher=launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def proposals(folder):
    return json.loads((folder / "output" / "result_proposal.json").read_text())["results"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, sample_data):
    """{interpreter: folder with what --mode full left}."""
    folders = {}
    for number, python in enumerate(PYTHONS):
        folders[python] = folder = tmp_path_factory.mktemp("pytorch%d" % number)
        (folder / "data").symlink_to(sample_data)
        log = run(python, folder, "--mode", "full", "--train_epochs", "1")
        assert re.search(r"^Epoch: 0,FPS: [\d.]+,time: [\d.]+$", log, re.MULTILINE)
        assert re.search(r"^AR@100 is \t0\.\d+$", log, re.MULTILINE)
        assert len(proposals(folder)) == 12
    return folders


@pytest.mark.parametrize("writer, reader", list(itertools.permutations(range(3), 2)))
def test_any_version_reads_what_another_wrote(runs, tmp_path, sample_data, writer, reader):
    (tmp_path / "data").symlink_to(sample_data)
    written = runs[PYTHONS[writer]]
    saved = written / "checkpoint" / "BMN_checkpoint.pth.tar"
    run(PYTHONS[reader], tmp_path, "--mode", "inference", "--pth_path", saved)
    mine, theirs = proposals(tmp_path), proposals(written)
    assert list(mine) == list(theirs)
    for name in mine:
        for one, other in zip(mine[name][:10], theirs[name][:10]):
            assert abs(one["score"] - other["score"]) < 1e-5
    # training goes on from there too, with optimizer, schedule and random numbers
    log = run(PYTHONS[reader], tmp_path, "--mode", "train", "--resume", saved, "--train_epochs", "2")
    assert "Epoch: 1,FPS" in log and "Epoch: 0,FPS" not in log


@pytest.mark.parametrize("python", OLD)
def test_two_processes(runs, tmp_path, sample_data, python):
    """Under the launcher that these versions have, which passes --local_rank."""
    (tmp_path / "data").symlink_to(sample_data)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    launcher = ("-m", "torch.distributed.launch", "--nproc_per_node", "2", "--master_port", str(port))
    log = run(python, tmp_path, "--mode", "train", "--train_epochs", "1", launcher=launcher)
    assert log.count("Epoch: 0,FPS") == 1 and "2 processes over gloo" in log
    saved = runs[python] / "checkpoint" / "BMN_checkpoint.pth.tar"
    run(python, tmp_path, "--mode", "inference", "--pth_path", saved, launcher=launcher)
    assert proposals(tmp_path) == proposals(runs[python])


@pytest.mark.parametrize("python", OLD)
def test_a_trace_or_a_refusal_at_the_start(tmp_path, sample_data, python):
    (tmp_path / "data").symlink_to(sample_data)
    done = start(python, tmp_path, "--mode", "train", "--train_epochs", "1", "--profile", "trace")
    if subprocess.check_output([python, "-c", "import torch; print(hasattr(torch, 'profiler'))"]) == b"True\n":
        assert done.returncode == 0 and len(os.listdir(str(tmp_path / "trace"))) == 1
    else:
        assert done.returncode == 1 and done.stderr.startswith("error: --profile needs PyTorch 1.8.1 or later")
        assert "videos" not in done.stdout and done.stderr.count("\n") == 1
