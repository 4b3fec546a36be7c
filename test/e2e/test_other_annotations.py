"""Whole runs on annotations of other forms, without labels, and figures of files that are there already."""
import json
import re

import pytest

ANNO = "data/activitynet_annotations/anet_anno_action.json"
INFO = "data/activitynet_annotations/video_info_new.csv"


def official(workshop, frames=False):
    """The sample's annotations in ActivityNet's own form, or in the reference's without frame counts."""
    entries = json.loads(workshop.text(ANNO))
    subsets = dict(line.split(",")[::5] for line in workshop.text(INFO).splitlines()[1:])
    database = {name[2:]: {"duration": entry["duration_second"], "subset": subsets[name].capitalize(),
                           "annotations": entry["annotations"]} for name, entry in entries.items()}
    (workshop.folder / "official.json").write_text(json.dumps({"database": database}))
    bare = {name: {key: entry[key] for key in ("duration_second", "annotations")} for name, entry in entries.items()}
    (workshop.folder / "bare.json").write_text(json.dumps(bare))


def figures(log):
    """The figures that a run printed: AUC, AR@AN or mAP."""
    return re.findall(r"^(?:\tArea.*|AR@\d+ is .*|mAP@.*)$", log, re.MULTILINE)


def succeeded(process):
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture
def trained(workshop):
    """A workshop with both files, and a network trained on the first of them."""
    official(workshop)
    succeeded(workshop.main("--video_anno", "official.json", "--video_info", "", "--train_epochs", 1, "--seed", 3))
    return workshop


def test_the_same_data_in_two_forms_give_the_same_bytes(trained):
    """... of the checkpoint's weights, so of the labels, and of the result file; ids with and without v_."""
    from bmn.training import checkpoint
    first = checkpoint.read(str(trained.folder / "checkpoint" / "BMN_best.pth.tar"))["state_dict"]
    log = succeeded(trained.main("--video_anno", "official.json", "--mode", "inference"))
    result = trained.text("output/result_proposal.json")
    again = succeeded(trained.main("--video_anno", "bare.json", "--mode", "full", "--train_epochs", 1, "--seed", 3,
                                   "--checkpoint_path", "again"))
    second = checkpoint.read(str(trained.folder / "again" / "BMN_best.pth.tar"))["state_dict"]
    assert all(bool((first[name] == second[name]).all()) for name in first) and list(first) == list(second)
    assert trained.text("output/result_proposal.json") == result and figures(log) == figures(again)[-5:]


def test_a_result_file_is_evaluated_alone(trained):
    """... with the same figures as after inference, and with a report; with labels, as detections."""
    log = succeeded(trained.main("--video_anno", "official.json", "--mode", "inference"))
    page = trained.folder / "output" / "report.html"
    page.unlink()
    for options in (["--ground_truth", "official.json"], ["--video_anno", "bare.json"]):
        alone = succeeded(trained.run("main.py", "--device", "cpu", "--mode", "evaluate", *options))
        assert figures(alone) == figures(log) and page.exists()
        page.unlink()
    succeeded(trained.run("main.py", "--device", "cpu", "--mode", "evaluate", *options, "--result_file",
                          "output/result_proposal.json", "--output_dir", "again"))
    assert (trained.folder / "again" / "report.html").exists() and not page.exists()
    results = json.loads(trained.text("output/result_proposal.json"))
    for rows in results["results"].values():
        for row in rows:
            row["label"] = "Fencing"
    (trained.folder / "detections.json").write_text(json.dumps(results))
    found = succeeded(trained.run("main.py", "--device", "cpu", "--mode", "evaluate", "--ground_truth", "official.json",
                                  "--result_file", "detections.json"))
    assert "its rows have labels" in found and len(figures(found)) == 4 and "AR@" not in found


def test_ids_of_the_ground_truth_are_kept(trained):
    """FineAction's ids begin with v_: the result file fits its ground truth, in anybody's evaluation."""
    truth = json.loads(trained.text("official.json"))
    truth["database"] = {"v_" + name: entry for name, entry in truth["database"].items()}
    (trained.folder / "truth.json").write_text(json.dumps(truth))
    succeeded(trained.main("--video_anno", "official.json", "--mode", "inference", "--ground_truth", "truth.json"))
    names = set(json.loads(trained.text("output/result_proposal.json"))["results"])
    assert names == {name for name, entry in truth["database"].items() if entry["subset"] == "Validation"}


def test_without_validation_labels_proposals_are_written_and_the_best_is_the_last(workshop):
    official(workshop)
    truth = json.loads(workshop.text("official.json"))
    for entry in truth["database"].values():
        if entry["subset"] == "Validation":
            del entry["annotations"]
    (workshop.folder / "bare.json").write_text(json.dumps(truth))
    log = succeeded(workshop.main("--video_anno", "bare.json", "--video_info", "", "--mode", "full",
                                  "--train_epochs", 2))
    assert "none of the 12 validation videos has an action, so their losses say nothing" in log
    assert "there is nothing to evaluate: none of the 12 videos" in log and not figures(log)
    assert len(json.loads(workshop.text("output/result_proposal.json"))["results"]) == 12
    from bmn.training import checkpoint
    assert checkpoint.read(str(workshop.folder / "checkpoint" / "BMN_best.pth.tar"))["epoch"] == 2


@pytest.mark.parametrize("option, content, words", [
    ("ground_truth", {"database": {"a": {"subset": "testing"}}}, "no video of the subset 'validation'"),
    ("ground_truth", [1, 2], "a form that is not known"), ("blocked", {"a": 1}, "no list of names")])
def test_a_wrong_file_is_told_before_the_training(workshop, option, content, words):
    (workshop.folder / "wrong.json").write_text(json.dumps(content))
    process = workshop.main("--mode", "full", "--" + option, "wrong.json", "--train_epochs", 1)
    assert process.returncode == 1 and words in process.stderr and "Traceback" not in process.stderr
    assert "Epoch: 0" not in process.stdout and not (workshop.folder / "checkpoint" / "BMN_best.pth.tar").exists()


@pytest.mark.parametrize("rate", [1, 5, 25])
def test_results_do_not_depend_on_the_rate_of_the_frames(trained, rate):
    """6 s at 5 frames a second are 30 frames: 30 // 16 * 16 would cut them in half, and 1 a second leave nothing."""
    entries = json.loads(trained.text("bare.json"))
    for entry in entries.values():
        entry["duration_frame"] = entry["feature_frame"] = 16 * round(entry["duration_second"] * rate / 16) + 1
    (trained.folder / "counted.json").write_text(json.dumps(entries))
    wanted = succeeded(trained.main("--video_anno", "bare.json", "--mode", "inference"))
    found = succeeded(trained.main("--video_anno", "counted.json", "--mode", "inference"))
    assert figures(found) == figures(wanted)


def test_the_real_annotations_of_thumos14_are_understood(workshop, shared):
    """They train on "Validation" and test on "Test". No features are needed to look at them."""
    (workshop.folder / "data").unlink()
    log = succeeded(workshop.run("tools/check_data.py", "--video_anno", shared + "/thumos14_annotations/thumos14.json",
                                 "--training_subset", "Validation", "--validation_subset", "Test",
                                 "--protocol", "thumos14", "--plot", "lengths.png"))
    assert "ActivityNet's own form, 410 videos" in log and "410 videos (Test 210, Validation 200)" in log
    assert "train: 200 videos of 8.93 to 1409 s" in log and "3096 actions of 21 classes" in log
    assert "odd: 8 actions outside the video: no labels" in log
    blind = re.findall(r"^  (random|the best list without features) .*AR@100 +([\d.]+)", log, re.MULTILINE)
    assert [name for name, _ in blind] == ["random", "the best list without features"]
    assert 1 < float(blind[0][1]) < 10 < float(blind[1][1]) < 30
    assert (workshop.folder / "lengths.png").read_bytes().startswith(b"\x89PNG")
