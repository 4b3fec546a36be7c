"""From a trained network to proposals, page and detections, by the command line and by Python callers."""
import json
import re
import subprocess
import sys

import conftest
import pytest

ALONE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from post_processing import BMN_post_processing
from eval import evaluation_proposal
opt = {"result_file": "output/alone.json", "save_fig_path": "output/alone.png", "post_process_thread": 2}
BMN_post_processing(opt)
evaluation_proposal(opt)
"""


@pytest.fixture(scope="module")
def inferred(tmp_path_factory, sample_data):
    """A workshop after --mode full; its log is in log.txt. Tests must not change it."""
    workshop = conftest.Workshop(tmp_path_factory.mktemp("inferred"))
    (workshop.folder / "data").symlink_to(sample_data)
    done = workshop.main("--mode", "full", "--train_epochs", 1, "--batch_size", 8)
    assert done.returncode == 0, done.stderr
    (workshop.folder / "log.txt").write_text(done.stdout)
    return workshop


@pytest.fixture
def workshop(workshop, inferred):
    (workshop.folder / "output").mkdir()
    (workshop.folder / "output" / "result_proposal.json").write_text(inferred.text("output/result_proposal.json"))
    return workshop


def test_the_tables_alone_give_the_same_result_file(inferred):
    """A program written for the reference reads the CSV files after inference."""
    done = subprocess.run([sys.executable, "-c", ALONE, conftest.ROOT], cwd=str(inferred.folder), capture_output=True,
                          text=True, env=inferred.environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert inferred.text("output/alone.json") == inferred.text("output/result_proposal.json")
    figures = re.findall(r"^AR@.*|^\tArea.*", inferred.text("log.txt"), re.MULTILINE)
    assert len(figures) == 5 and re.findall(r"^AR@.*|^\tArea.*", done.stdout, re.MULTILINE) == figures


def test_tables_can_be_left_out(inferred, workshop):
    done = workshop.main("--mode", "inference", "--save_csv", 0, "--result_file", "new/result.json", "--pth_path",
                         str(inferred.folder / "checkpoint" / "BMN_best.pth.tar"))
    assert done.returncode == 0, done.stderr
    assert not (workshop.folder / "output" / "BMN_results").exists()
    assert workshop.text("new/result.json") == inferred.text("output/result_proposal.json")
    assert "Best video" in workshop.text("new/report.html")


def classification(workshop, **more):
    """Write classes.json: scores that favour the true classes of each video. Returns its content."""
    annotated = json.loads(workshop.text("data/activitynet_annotations/anet_anno_action.json"))
    classes = sorted({one["label"] for video in annotated.values() for one in video["annotations"]})
    results = {}
    for name in json.loads(workshop.text("output/result_proposal.json"))["results"]:
        true = {one["label"] for one in annotated["v_" + name]["annotations"]}
        results[name] = [1.0 if label in true else 0.1 for label in classes]
    content = dict({"class": classes, "results": results}, **more)
    (workshop.folder / "classes.json").write_text(json.dumps(content))
    return content


def detect(workshop):
    return workshop.main("--mode", "detection", "--classification_file", "classes.json")


def test_detection_prints_map_and_writes_detections(workshop):
    classification(workshop)
    done = detect(workshop)
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^mAP@(\S+) is \t([\d.e-]+)$", done.stdout, re.MULTILINE))
    assert list(found) == ["0.50", "0.75", "0.95", "0.50:0.05:0.95"]
    assert 1 >= float(found["0.50"]) >= float(found["0.75"]) >= float(found["0.95"]) >= 0 < float(found["0.50"])
    for line in done.stdout.splitlines():
        assert "FPS" not in line and "AR@100" not in line and not ("training" in line and "total_loss" in line)
    detections = json.loads(workshop.text("output/result_detection.json"))["results"]
    proposals = json.loads(workshop.text("output/result_proposal.json"))["results"]
    assert {name: len(rows) for name, rows in detections.items()} == {
        name: 2 * len(rows) for name, rows in proposals.items()}


def test_bad_input_of_detection_overwrites_nothing(workshop):
    (workshop.folder / "output" / "result_detection.json").write_text("old")
    content = classification(workshop)
    some = sorted(content["results"])[0]

    def refused(*words):
        done = detect(workshop)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 1 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
        assert all(word in errors[0] for word in words), errors[0]
        assert workshop.text("output/result_detection.json") == "old"

    classification(workshop, results={"nobody": content["results"][some]})
    refused("classes.json", "has none of the")
    (workshop.folder / "output" / "result_proposal.json").write_text('{"results": {}}')
    refused("result_proposal.json", "holds no proposal")
