"""Networks in the layouts of other implementations: converted, served, fine-tuned and exported by real processes."""
import json
import os
import sys

import pytest
import torch
from conftest import ROOT
from test_whole_job import succeeded

sys.path[:0] = [ROOT, os.path.join(ROOT, "test")]

from bmn.sampling import whole_mask  # noqa: E402
from models import BMN  # noqa: E402

SHAPE = {"temporal_scale": 16, "feat_dim": 8}


@pytest.fixture
def mmaction2(workshop):
    """A file as mmaction2 writes it."""
    torch.manual_seed(0)
    tensors = dict(BMN(dict(SHAPE, layout="mmaction2")).state_dict())
    tensors["sample_mask"] = torch.from_numpy(whole_mask(16, 32, 3, 0.5, "mmaction2")).view(16, -1)
    tensors["bm_mask"] = torch.flip(torch.tril(torch.ones(16, 16)), (0,))
    torch.save({"meta": {"epoch": 9}, "state_dict": tensors}, str(workshop.folder / "theirs.pth"))
    return "theirs.pth"


def results(workshop):
    return json.loads(workshop.text("output/result_proposal.json"))["results"]


def test_mmaction2s_network_is_refused_served_and_fine_tuned(workshop, mmaction2):
    refused = workshop.main("--mode", "inference", "--pth_path", mmaction2)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "--layout mmaction2, as its sampling weights show, but here it is reference: give the same" in refused.stderr

    how = ("--layout", "mmaction2", "--opt_level", "O0")
    succeeded(workshop.main("--mode", "inference", "--pth_path", mmaction2, *how))
    direct = results(workshop)
    printed = succeeded(workshop.run("tools/convert_checkpoint.py", mmaction2, "ours.pth.tar", "--to", "ours",
                                     "--from", "mmaction2"))
    assert "--layout mmaction2" in printed and "--temporal_scale 16" in printed
    succeeded(workshop.main("--mode", "inference", "--pth_path", "ours.pth.tar", *how))
    assert results(workshop) == direct

    log = succeeded(workshop.main("--mode", "full", "--finetune", 1, "--pth_path", "ours.pth.tar", "--train_epochs", 1,
                                  "--layout", "mmaction2"))
    assert "AR@100 is" in log
    assert json.loads(workshop.text("checkpoint/opts.json"))["layout"] == "mmaction2"
    printed = succeeded(workshop.run("tools/predict.py", "data/activitynet_feature_cuhk", "--duration", 60, "--output",
                                     "predicted.json"))
    assert "start" in printed
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    succeeded(workshop.main("--mode", "inference", "--layout", "mmaction2", "--opt_level", "O0"))
    by_pytorch = results(workshop)
    succeeded(workshop.run("tools/export_onnx.py", "checkpoint/BMN_best.pth.tar", "bmn.onnx", "--batch", 0))
    succeeded(workshop.main("--mode", "inference", "--onnx", "bmn.onnx", "--layout", "mmaction2"))
    by_onnx = results(workshop)
    for name, rows in by_pytorch.items():
        assert rows[0]["segment"] == by_onnx[name][0]["segment"]
        assert abs(rows[0]["score"] - by_onnx[name][0]["score"]) < 1e-5
    refused = workshop.main("--mode", "inference", "--onnx", "bmn.onnx")
    assert "bmn.onnx is a network of --layout mmaction2, but here it is reference" in refused.stderr


def test_a_training_with_a_longest_duration_runs_on_every_route(workshop):
    how = ("--layout", "opentad", "--max_duration", 6, "--train_epochs", 1)
    succeeded(workshop.main("--mode", "full", *how))
    for rows in results(workshop).values():
        assert rows
    with open(str(workshop.folder / "checkpoint" / "opts.json")) as handle:
        assert json.load(handle)["max_duration"] == 6
    refused = workshop.main("--mode", "inference", "--layout", "opentad")
    assert "was made with --max_duration 6, but here it is 0" in refused.stderr
