"""Programs that put the reference's folder on sys.path and import its names run on ours, unchanged.

The programs here do what Ascend's offline-inference package for BMN does, with the same imports and calls: a module
``opts`` of their own comes first on the path, the working directory is another, options are a dict of the reference's
keys only. They also have modules of their own with everyday names, which we must not need.
"""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, Workshop

SCALE = ("--temporal_scale", "20", "--feat_dim", "8")
COMMON = ("--device", "cpu", "--num_workers", "0", "--opt_level", "O0") + SCALE + ("--num_sample", "8")

CALLERS_OWN = ("errors", "defaults", "files", "device", "features", "parallel", "segments", "processes", "loaders",
               "profiling", "figures", "report", "checkpoint", "annotations", "amp", "engine", "detection", "options")
PROGRAMS = {
    "opts.py": """
def parse_opt():
    house = "./BMN-Boundary-Matching-Network/"
    return {"mode": "train", "temporal_scale": 20, "feat_dim": 8, "num_sample": 8, "num_sample_perbin": 3,
            "prop_boundary_ratio": 0.5, "video_info": "data/activitynet_annotations/video_info_new.csv",
            "video_anno": "data/activitynet_annotations/anet_anno_action.json",
            "feature_path": "data/activitynet_feature_cuhk/", "post_process_thread": 3, "soft_nms_alpha": 0.4,
            "soft_nms_low_thres": 0.5, "soft_nms_high_thres": 0.9, "result_file": "./output/result_proposal.json",
            "save_fig_path": "./output/evaluation_result.jpg", "ground_truth_file": house + "no such file"}
""",
    "to_onnx.py": """
import sys
import torch
import opts
sys.path.append(r"./BMN-Boundary-Matching-Network")
from models import BMN

network = BMN(opts.parse_opt())
stored = torch.load("BMN_best.pth.tar", map_location=torch.device("cpu"))["state_dict"]
assert all(name.startswith("module.") for name in stored)
network.load_state_dict({name[7:]: tensor for name, tensor in stored.items()})
network.eval()
torch.onnx.export(network, torch.randn(1, 8, 20), "bmn.onnx", input_names=["image"],
                  output_names=["confidence_map", "start", "end"], opset_version=11, verbose=False)
""",
    "prepare.py": """
import os, sys
import torch
import opts
sys.path.append(r"./BMN-Boundary-Matching-Network")
from dataset import VideoDataSet

def main():
    opt = opts.parse_opt()
    opt["mode"] = "inference"
    os.mkdir("features")
    loader = torch.utils.data.DataLoader(VideoDataSet(opt, subset="validation"), batch_size=1, shuffle=False,
                                         num_workers=2, pin_memory=True, drop_last=False)
    with torch.no_grad():
        for index, features in loader:
            features = features.detach().cpu().numpy()
            assert features.shape == (1, 8, 20)
            features.tofile("features/%04d.bin" % int(index))

if __name__ == "__main__":      # without it, Python 3.14 refuses to start the workers
    main()
""",
    "finish.py": """
import os, sys
import numpy as np
import pandas as pd
import torch
import opts
sys.path.append(r"BMN-Boundary-Matching-Network")
sys.path.append(r"BMN-Boundary-Matching-Network/Evaluation")
from post_processing import BMN_post_processing
from dataset import VideoDataSet
from eval import run_evaluation, plot_metric

def main():
    opt = opts.parse_opt()
    opt["mode"] = "validation"
    scale = opt["temporal_scale"]
    os.makedirs("output/BMN_results")
    loader = torch.utils.data.DataLoader(VideoDataSet(opt, subset="validation"), batch_size=1, shuffle=False,
                                         num_workers=2, pin_memory=True, drop_last=False)
    for index, _ in loader:
        name = loader.dataset.video_list[index[0]]
        maps, start, end = (np.fromfile("outputs/%04d_%d.bin" % (int(index), i), np.float32) for i in range(3))
        reg, cls = maps.reshape(2, scale, scale)
        rows = [[s / scale, e / scale, start[s], end[e], cls[s, e - 1], reg[s, e - 1],
                 start[s] * end[e] * cls[s, e - 1] * reg[s, e - 1]] for s in range(scale) for e in range(s + 1, scale)]
        columns = ["xmin", "xmax", "xmin_score", "xmax_score", "clr_score", "reg_socre", "score"]
        pd.DataFrame(np.stack(rows), columns=columns).to_csv("./output/BMN_results/" + name + ".csv", index=False)
    BMN_post_processing(opt)
    numbers, average, recall = run_evaluation(
        ground_truth_filename="ground_truth.json", proposal_filename=opt["result_file"], max_avg_nr_proposals=100,
        tiou_thresholds=np.linspace(0.5, 0.95, 10), subset="validation")
    plot_metric(opt, numbers, average, recall)
    for k in (1, 5, 10, 100):
        print("AR@%d is" % k, np.mean(recall[:, k - 1]))

if __name__ == "__main__":
    main()
""",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with those programs, data, a trained checkpoint in the reference's form, and our folder by its name."""
    workshop = Workshop(tmp_path_factory.mktemp("package"))
    made = workshop.run("tools/make_sample_data.py", "--output", "data", "--videos", 40, *SCALE)
    trained = workshop.run("main.py", *COMMON, "--train_epochs", 3, "--batch_size", 8, "--training_lr", "3e-3")
    converted = workshop.run("tools/convert_checkpoint.py", "checkpoint/BMN_best.pth.tar", "BMN_best.pth.tar", "--to",
                             "reference")
    for process in (made, trained, converted):
        assert process.returncode == 0, process.stderr
    (workshop.folder / "BMN-Boundary-Matching-Network").symlink_to(ROOT)
    for name, text in PROGRAMS.items():
        (workshop.folder / name).write_text(text)
    for name in CALLERS_OWN:
        (workshop.folder / (name + ".py")).write_text("OWNER = 'the caller'\n")
    with open(str(workshop.folder / "data/activitynet_annotations/anet_anno_action.json")) as handle:
        videos = json.load(handle)
    with open(str(workshop.folder / "data/activitynet_annotations/video_info_new.csv")) as handle:
        subsets = {line.split(",")[0]: line.strip() for line in handle}
    truth = {name[2:]: {"subset": "validation" if ",validation," in subsets[name] else "training",
                        "duration": video["duration_second"], "annotations": video["annotations"]}
             for name, video in videos.items()}
    (workshop.folder / "ground_truth.json").write_text(json.dumps(
        {"database": truth, "taxonomy": [], "version": "VERSION 1.3"}))
    return workshop


def program(package, name, loads_its_modules_first=True):
    """Run one of PROGRAMS, which also uses all of CALLERS_OWN."""
    text = PROGRAMS[name]
    load = "import %s\nassert all(module.OWNER == 'the caller' for module in (%s))\n" % (
        (", ".join(CALLERS_OWN),) * 2)
    (package.folder / name).write_text(load + text if loads_its_modules_first else text + load)
    process = subprocess.run([sys.executable, name], cwd=str(package.folder), env=package.environment(),
                             capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def ar(output):
    return {line.split()[0]: float(line.split()[-1]) for line in output.splitlines() if line.startswith("AR@")}


def scores(package, path):
    """{video: scores} of a result file."""
    return {name: [proposal["score"] for proposal in proposals]
            for name, proposals in json.loads(package.text(path))["results"].items()}


def assert_close(found, wanted):
    assert list(found) == list(wanted) and found
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-4, atol=1e-7)


@pytest.mark.slow
def test_offline_inference_in_the_reference_s_place(package):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the Python package onnxruntime")
    pytest.importorskip("onnxscript", reason="needs the Python package onnxscript")
    program(package, "to_onnx.py", loads_its_modules_first=False)
    program(package, "prepare.py")
    session = onnxruntime.InferenceSession(str(package.folder / "bmn.onnx"))
    (package.folder / "outputs").mkdir()
    for name in os.listdir(str(package.folder / "features")):
        features = np.fromfile(str(package.folder / "features" / name), np.float32).reshape(1, 8, 20)
        for i, output in enumerate(session.run(["confidence_map", "start", "end"], {"image": features})):
            output.tofile(str(package.folder / "outputs" / ("%s_%d.bin" % (name[:-4], i))))
    printed = program(package, "finish.py")
    assert (package.folder / "output" / "evaluation_result.jpg").stat().st_size > 10000

    own = package.run("main.py", *COMMON, "--mode", "inference", "--ground_truth", "ground_truth.json",
                      "--pth_path", "BMN_best.pth.tar", "--result_file", "own/result.json",
                      "--save_fig_path", "own/curve.jpg", "--save_csv", 0)
    assert own.returncode == 0, own.stderr
    assert ar(printed) == pytest.approx(ar(own.stdout), abs=1e-9) and len(ar(printed)) == 4
    assert_close(scores(package, "output/result_proposal.json"), scores(package, "own/result.json"))


@pytest.mark.slow
def test_inference_on_an_onnx_file(package):
    """main.py --onnx: the results of PyTorch, to rounding."""
    pytest.importorskip("onnxruntime", reason="needs the Python package onnxruntime")
    exported = package.run("tools/export_onnx.py", "checkpoint/BMN_best.pth.tar", "fixed.onnx", "--batch", 5)
    assert exported.returncode == 0, exported.stderr
    outputs = {}
    for name, more in (("torch", ()), ("onnx", ("--onnx", "fixed.onnx"))):
        process = package.run("main.py", *COMMON, "--mode", "inference", "--save_csv", 0, "--result_file",
                              name + "/result.json", "--save_fig_path", name + "/curve.jpg", *more)
        assert process.returncode == 0, process.stderr
        outputs[name] = ar(process.stdout)
    assert outputs["onnx"] == pytest.approx(outputs["torch"], abs=1e-9)
    assert_close(scores(package, "onnx/result.json"), scores(package, "torch/result.json"))
