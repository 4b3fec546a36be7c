"""main.py on the simulated NPU: the three modes, both precisions, two processes, and checkpoints that change device."""
import ast
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SMALL, Workshop, torchrun

SIMULATION = os.path.join(ROOT, "test", "simulated_npu")
APEX = os.path.join(ROOT, "test", "apex_stand_in")
COMMON = SMALL + ("--num_workers", "0", "--batch_size", "8", "--save_csv", "0")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="the simulation needs "
                                                   "private parts of a recent PyTorch")]


def run(workshop, *args, launcher=(), path=SIMULATION, **environment):
    """main.py with the simulation on its path; returns its output."""
    done = subprocess.run([sys.executable, *launcher, os.path.join(ROOT, "main.py"), *COMMON, *args],
                          cwd=str(workshop.folder), capture_output=True, text=True, timeout=600, check=False,
                          env=workshop.environment(PYTHONPATH=path, **environment))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def proposals(workshop):
    return json.loads(workshop.text("output/result_proposal.json"))["results"]


def close(one, other):
    """The same videos, and best proposals of nearly the same score."""
    return list(one) == list(other) and all(abs(one[name][k]["score"] - other[name][k]["score"]) < 1e-4
                                            for name in one for k in range(10))


def last_line(workshop):
    return json.loads(workshop.text("checkpoint/metrics.jsonl").splitlines()[-1])


@pytest.fixture(scope="module")
def on_npu(tmp_path_factory, sample_data):
    """What --mode full leaves in float32 on the simulated NPU."""
    workshop = Workshop(tmp_path_factory.mktemp("npu"))
    (workshop.folder / "data").symlink_to(sample_data)
    workshop.log = run(workshop, "--device", "npu", "--opt_level", "O0", "--mode", "full", "--train_epochs", "1",
                       "--profile", "trace")
    return workshop


def test_full_mode_gives_what_a_cpu_gives(on_npu, workshop):
    assert on_npu.log.startswith("device: npu:0\nprecision: float32 (--opt_level O0)\n")
    assert re.search(r"^AR@100 is \t0\.\d+$", on_npu.log, re.MULTILINE)
    assert len(os.listdir(str(on_npu.folder / "trace"))) == 1
    run(workshop, "--device", "cpu", "--opt_level", "O0", "--mode", "full", "--train_epochs", "1")
    mine, theirs = last_line(on_npu), last_line(workshop)
    assert (mine["device"], theirs["device"]) == ("npu", "cpu")
    assert all(abs(mine["validation"][name] - theirs["validation"][name]) < 1e-4 for name in mine["validation"])
    assert close(proposals(on_npu), proposals(workshop))


def test_checkpoints_go_from_npu_to_cpu_and_back(on_npu, workshop):
    saved = str(on_npu.folder / "checkpoint" / "BMN_best.pth.tar")
    log = run(workshop, "--device", "cpu", "--opt_level", "O0", "--mode", "inference", "--pth_path", saved, path="")
    assert "device: cpu" in log and close(proposals(workshop), proposals(on_npu))
    # training goes on there, without torch_npu; then the checkpoint comes back
    resumed = run(workshop, "--device", "cpu", "--opt_level", "O0", "--mode", "train", "--train_epochs", "2",
                  "--resume", saved, path="")
    assert "Epoch: 1,FPS" in resumed
    run(workshop, "--device", "cpu", "--opt_level", "O0", "--mode", "inference", path="")
    on_cpu = proposals(workshop)
    run(workshop, "--device", "npu", "--opt_level", "O0", "--mode", "inference")
    assert close(proposals(workshop), on_cpu)


def test_mixed_precision_by_torch_npu(workshop):
    log = run(workshop, "--device", "auto", "--mode", "full", "--train_epochs", "1", "--batch_size", "4")
    assert log.startswith("device: npu:0\nprecision: float16 autocast, loss scale 128 (--opt_level O1)\n")
    assert last_line(workshop)["skipped_steps"] == 0 and len(proposals(workshop)) == 12


def test_steps_that_overflow_are_counted(workshop):
    log = run(workshop, "--device", "npu", "--mode", "train", "--train_epochs", "1", "--loss_scale", "1e9")
    assert "epoch 0: 3 of 3 steps were left out because their gradients overflowed (--loss_scale)\n" in log
    assert last_line(workshop)["skipped_steps"] == 3


def test_mixed_precision_by_apex(workshop):
    log = run(workshop, "--device", "npu", "--mode", "full", "--train_epochs", "1", "--opt_level", "O2",
              path=os.pathsep.join([SIMULATION, APEX]), APEX_CALLS="calls")
    assert "precision: apex O2, loss scale 128 (--opt_level O2)" in log
    calls = [ast.literal_eval(line) for line in workshop.text("calls").splitlines()]
    initialize = ("initialize", "O2", 128.0, True)
    assert calls == [initialize] + 3 * [("scale_loss", 128.0), ("gradients", False)] + [initialize]


def test_two_processes_give_what_one_gives(on_npu, workshop):
    """They use the simulated hccl. The steps are too small to move a weight, so the figures must be the same."""
    still = ("--device", "npu", "--opt_level", "O0", "--mode", "full", "--finetune", "1", "--pth_path",
             str(on_npu.folder / "checkpoint" / "BMN_best.pth.tar"), "--training_lr", "1e-30", "--train_epochs", "1")
    launcher = torchrun(2)
    log = run(workshop, *still, "--DeviceID", "0,0", launcher=launcher)
    assert "device: npu:0, 2 processes over hccl" in log and log.count("Epoch: 0,FPS") == 1
    assert last_line(workshop)["validation"] == last_line(on_npu)["validation"]
    assert proposals(workshop) == proposals(on_npu)


JOINED_BATCH = """
from bmn.machine import device
from bmn.options import with_defaults
import torch
from models import BMN

with device.setup(with_defaults({"device": "npu", "DeviceID": "0,0"})) as runtime:
    torch.manual_seed(0)
    network = BMN({"temporal_scale": 8, "feat_dim": 4, "num_sample": 4}).to(runtime.device)
    model = runtime.wrap(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    for step in range(2):
        batch = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(step))
        size = 4 // runtime.world_size
        mine = batch[runtime.rank * size:(runtime.rank + 1) * size].to(runtime.device)
        optimizer.zero_grad()
        sum((output ** 2).mean() for output in model(mine)).backward()      # means over videos, unlike BMN's losses
        optimizer.step()
    weights = torch.cat([weight.detach().cpu().flatten() for weight in network.parameters()])
    assert all(torch.equal(weights, other) for other in runtime.gather(weights))
    if runtime.is_main:
        torch.save(weights, "joined.%d" % runtime.world_size)
"""


def test_gradients_of_two_processes_are_those_of_the_joined_batch(workshop):
    (workshop.folder / "joined.py").write_text(JOINED_BATCH)
    path = os.pathsep.join([SIMULATION, ROOT])
    for launcher in ([], torchrun(2)):
        done = subprocess.run([sys.executable, *launcher, "joined.py"], cwd=str(workshop.folder), capture_output=True,
                              text=True, env=workshop.environment(PYTHONPATH=path), timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(str(workshop.folder / ("joined.%d" % count))) for count in (1, 2))
    assert torch.allclose(one, two, rtol=1e-5, atol=1e-7)
