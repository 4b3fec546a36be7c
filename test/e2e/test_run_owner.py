"""What a run writes and evaluates is its own, whatever other runs do in its folder or have left there."""
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SMALL
from test_resume import failed, succeeded

from bmn.options import BEST
from bmn.training import checkpoint

COMMON = ("--device", "cpu") + SMALL + ("--num_sample", "2", "--num_workers", "0", "--batch_size", "8",
                                       "--opt_level", "O0")


def start(workshop, *options):
    return subprocess.Popen([sys.executable, os.path.join(ROOT, "main.py"), *COMMON, *map(str, options)],
                            cwd=str(workshop.folder), env=workshop.environment(), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def run(workshop, *options):
    process = start(workshop, *options)
    output, errors = process.communicate(timeout=600)
    return subprocess.CompletedProcess([], process.returncode, output, errors)


def test_a_second_run_in_the_folder_says_who_owns_it(workshop):
    first = start(workshop, "--train_epochs", 100000)
    try:
        while not first.stdout.readline().startswith("Epoch: 0"):
            assert first.poll() is None
        before = sorted(os.listdir(str(workshop.folder / "checkpoint")))
        sentence = failed(run(workshop, "--train_epochs", 1))
        assert "process %d on machine" % first.pid in sentence and "owns --checkpoint_path ./checkpoint" in sentence
        assert [name for name in before if name not in os.listdir(str(workshop.folder / "checkpoint"))] == []
    finally:
        first.kill()
        first.communicate()
    succeeded(run(workshop, "--train_epochs", 1))       # the dead owns nothing


@pytest.fixture
def older(workshop):
    """A folder with the checkpoints of an older run, and their bytes."""
    succeeded(run(workshop, "--train_epochs", 1))
    return workshop, contents(workshop)


def contents(workshop):
    return {name: (workshop.folder / "checkpoint" / name).read_bytes() for name in (checkpoint.LAST, BEST)}


DIVERGING = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import main, torch
from bmn.errors import run_as_program
from bmn.machine.amp import Plain
from opts import parse_opt

step, steps = Plain.step, []

def diverge(self, loss, optimizer):
    step(self, loss, optimizer)
    steps.append(1)
    if len(steps) == %d:            # the last step of an epoch: its loss was still finite
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].fill_(float("nan"))

Plain.step = diverge
run_as_program(main.main, parse_opt())
"""


@pytest.mark.parametrize("mode", ["train", "full"])
@pytest.mark.parametrize("steps", [3, 6])
def test_a_run_that_diverges_in_the_last_step_of_an_epoch_ends(older, mode, steps):
    """24 videos make three steps. Nothing is evaluated, and the checkpoint before stays."""
    workshop, before = older
    command = [sys.executable, "-c", DIVERGING % steps, ROOT, *COMMON, "--mode", mode, "--train_epochs", "2"]
    process = subprocess.run(command, cwd=str(workshop.folder), env=workshop.environment(), capture_output=True,
                             text=True, check=False)
    sentence = failed(process)
    assert "validation loss of epoch %d is not finite (total nan, tem nan" % (steps // 3 - 1) in sentence
    assert "AR@100" not in process.stdout
    if steps == 3:
        assert contents(workshop) == before
    else:
        assert checkpoint.read(str(workshop.folder / "checkpoint" / checkpoint.LAST))["epoch"] == 1
    for line in workshop.text("checkpoint/metrics.jsonl").splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_full_evaluates_what_it_wrote_also_after_it_went_on_elsewhere(older):
    workshop, _ = older
    os.rename(str(workshop.folder / "checkpoint"), str(workshop.folder / "first"))
    succeeded(run(workshop, "--train_epochs", 1, "--seed", 5))           # another run, in the folder that is given
    log = succeeded(run(workshop, "--mode", "full", "--resume", "first/" + checkpoint.LAST, "--train_epochs", 1))
    assert "AR@100 is" in log
    found, wanted = (checkpoint.read(str(workshop.folder / folder / BEST)) for folder in ("checkpoint", "first"))
    assert all(torch.equal(found["state_dict"][name], tensor) for name, tensor in wanted["state_dict"].items())
    shutil.rmtree(str(workshop.folder / "checkpoint"))
    os.remove(str(workshop.folder / "first" / BEST))
    assert "AR@100 is" in succeeded(run(workshop, "--mode", "full", "--resume", "first/" + checkpoint.LAST,
                                        "--train_epochs", 1))


def test_fewer_epochs_than_are_done_are_refused(older):
    workshop, _ = older
    succeeded(run(workshop, "--train_epochs", 2, "--resume", "auto"))
    assert "has done 2 already: give 2 or more" in failed(run(workshop, "--train_epochs", 1, "--resume", "auto"))


def test_output_dir_and_checkpoint_path_take_everything(workshop):
    """The working folder may then be one that cannot be written."""
    before = os.listdir(str(workshop.folder))
    log = succeeded(run(workshop, "--mode", "full", "--train_epochs", 1, "--output_dir", "out/results",
                        "--checkpoint_path", "out/run"))
    assert sorted(os.listdir(str(workshop.folder))) == sorted([*before, "out"])
    assert sorted(os.listdir(str(workshop.folder / "out/results"))) == [
        "BMN_results", "evaluation_result.jpg", "report.html", "result_proposal.json"]
    assert len(os.listdir(str(workshop.folder / "out/results/BMN_results"))) == 12
    assert "report: %s" % os.path.join("out/results", "report.html") in log
