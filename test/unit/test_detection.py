"""Detection: the two forms of a classification file, and mAP compared with a plain version of the protocol."""
import json

import numpy as np
import pytest

import detection
from bmn.data.ground_truth import ground_truth_of
from bmn.errors import UserError
from bmn.options import with_defaults
from bmn.results.protocols import PROTOCOLS
from bmn.results.result_files import read_detections

THRESHOLDS = np.linspace(0.5, 0.95, 10)
VIDEO = {"duration_second": 100.0, "duration_frame": 3200, "feature_frame": 3200}


def precision_by_the_protocol(ground_truth, detections, label, threshold):
    """Average precision of a class at a threshold, with loops over all detections and all actions."""
    actions = [(name, start, end) for name, rows in ground_truth.items() for start, end, kind in rows if kind == label]
    ranked = [(score, name, segment) for name, rows in detections.items() for kind, score, segment in rows
              if kind == label]
    ranked = sorted(ranked, key=lambda row: row[0])[::-1]       # of equal scores the later one comes first
    locked, hits = set(), []
    for _, name, (start, end) in ranked:
        overlaps = []
        for index, (video, first, last) in enumerate(actions):
            inter = max(min(end, last) - max(start, first), 0)
            if video == name:
                overlaps.append((inter / ((end - start) + (last - first) - inter), index))
        best = next((index for overlap, index in sorted(overlaps, reverse=True)
                     if overlap >= threshold and index not in locked), None)
        hits.append(best is not None)
        locked.add(best)
    precision = [sum(hits[:n + 1]) / (n + 1) for n in range(len(hits))]
    recall = [0] + [sum(hits[:n + 1]) / len(actions) for n in range(len(hits))]
    return sum((recall[n + 1] - recall[n]) * max(precision[n:]) for n in range(len(hits)))


def random_case(rng, grid):
    """Segments on a coarse grid, so that tIoUs and scores are often equal."""
    def segment():
        start = rng.randint(0, grid - 1)
        return [float(start), float(rng.randint(start + 1, grid + 1))]
    labels = ["Polo", "Surfing", "Curling", "Ballet"]
    ground_truth = {"v%d" % v: [(*segment(), labels[rng.randint(3)]) for _ in range(rng.randint(1, 5))]
                    for v in range(6)}
    detections = {"v%d" % v: [(labels[rng.randint(4)], rng.randint(1, 8) / 8.0, segment())
                              for _ in range(rng.randint(0, 40))] for v in range(1, 8)}
    return ground_truth, detections


@pytest.mark.parametrize("grid", [4, 10, 100])
def test_mean_average_precision_follows_the_protocol(rng, grid):
    for _ in range(15):
        ground_truth, detections = random_case(rng, grid)
        labels = {label for rows in ground_truth.values() for _, _, label in rows}
        expected = [np.mean([precision_by_the_protocol(ground_truth, detections, label, threshold) for label in labels])
                    for threshold in THRESHOLDS]
        ours = detection.mean_average_precision(ground_truth, detections)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


def test_perfect_detections_have_precision_one():
    ground_truth = {"a": [(0.0, 10.0, "Polo"), (20.0, 30.0, "Polo")], "b": [(5.0, 6.0, "Ballet")]}
    detections = {name: [(label, 0.5, [start, end]) for start, end, label in rows]
                  for name, rows in ground_truth.items()}
    np.testing.assert_array_equal(detection.mean_average_precision(ground_truth, detections), np.ones(10))


def test_a_second_detection_of_an_action_is_a_false_positive():
    ground_truth = {"a": [(0.0, 10.0, "Polo")]}
    detections = {"a": [("Polo", 0.9, [50.0, 60.0]), ("Polo", 0.8, [0.0, 10.0]), ("Polo", 0.7, [0.0, 10.0])]}
    np.testing.assert_array_equal(detection.mean_average_precision(ground_truth, detections), np.full(10, 0.5))


def test_of_equal_scores_the_later_one_comes_first():
    ground_truth = {"a": [(0.0, 10.0, "Polo")]}
    right, wrong = ("Polo", 0.5, [0.0, 10.0]), ("Polo", 0.5, [50.0, 60.0])
    for rows, wanted in (([right, wrong], 0.5), ([wrong, right], 1.0)):
        np.testing.assert_array_equal(detection.mean_average_precision(ground_truth, {"a": rows}), np.full(10, wanted))


def test_two_segments_without_length_at_one_place_are_a_hit():
    """0/0: in the official code NaN < threshold is false, at every threshold; AR@AN counts no hit."""
    ground_truth = {"a": [(5.0, 5.0, "Polo"), (0.0, 10.0, "Polo")]}
    detections = {"a": [("Polo", 0.9, [5.0, 5.0]), ("Polo", 0.8, [0.0, 10.0]), ("Polo", 0.7, [5.0, 5.0])]}
    np.testing.assert_array_equal(detection.mean_average_precision(ground_truth, detections), np.ones(10))
    recall = detection.evaluation.average_recall(ground_truth, {"a": np.array([[0.9, 5.0, 5.0]])})[2]
    assert recall.sum() == 0


def test_detections_that_only_touch_an_ambiguous_action_do_not_count():
    ground_truth, ambiguous = {"a": [(0.0, 10.0, "Polo")]}, {"a": [(50.0, 60.0, "Ambiguous")], "b": [(0.0, 9.0, "x")]}
    detections = {"a": [("Polo", 0.9, [59.0, 90.0]), ("Polo", 0.8, [60.0, 90.0]), ("Polo", 0.7, [0.0, 10.0])],
                  "b": [("Polo", 0.95, [1.0, 2.0])]}
    found = detection.mean_average_precision(ground_truth, detections, PROTOCOLS["thumos14"], ambiguous)
    np.testing.assert_array_equal(found, np.full(5, 1 / 2))         # only [60, 90] is a false positive
    np.testing.assert_array_equal(
        detection.mean_average_precision(ground_truth, detections, PROTOCOLS["thumos14"]), np.full(5, 1 / 4))


def test_precision_may_be_left_as_it_is():
    """Hits at ranks 2 and 3 of four: interpolated (2/3 + 2/3) / 2, and as the THUMOS-14 kit has it (1/2 + 2/3) / 2."""
    ground_truth = {"a": [(0.0, 10.0, "Polo"), (20.0, 30.0, "Polo")]}
    segments = ([70, 80], [0, 10], [20, 30], [1, 2])
    detections = {"a": [("Polo", 0.9 - rank / 10, segment) for rank, segment in enumerate(segments)]}
    for name, wanted in (("thumos14", 2 / 3), ("thumos14-kit", (1 / 2 + 2 / 3) / 2)):
        np.testing.assert_allclose(detection.mean_average_precision(ground_truth, detections, PROTOCOLS[name]), wanted)


def test_scores_of_proposals_and_classes_are_multiplied():
    rows = detection.classify(np.array([[0.5, 1, 2], [0.4, 3, 4]]), [("Polo", 0.9), ("Ballet", 0.85)])
    assert rows == [("Polo", 0.45, [1, 2]), ("Ballet", 0.425, [1, 2]), ("Polo", 0.4 * 0.9, [3, 4]),
                    ("Ballet", 0.4 * 0.85, [3, 4])]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Complete options; their files hold two annotated videos, one without actions, proposals and classes."""
    monkeypatch.chdir(tmp_path)
    annotations = {"v_a": [(10.0, 20.0, "Polo")], "v_b": [(0.0, 50.0, "Surfing"), (60.0, 80.0, "Surfing")], "v_c": [],
                   "v_t": [(1.0, 2.0, "Ballet")]}
    write("anno.json", {name: dict(VIDEO, annotations=[{"segment": [start, end], "label": label}
                                                       for start, end, label in rows])
                        for name, rows in annotations.items()})
    (tmp_path / "info.csv").write_text("video,subset\nv_a,validation\nv_b,validation\nv_c,validation\nv_t,training\n")
    write("result.json", {"version": "VERSION 1.3", "external_data": {}, "results": {
        "a": [{"score": 0.9, "segment": [10.0, 21.0]}, {"score": 0.2, "segment": [40.0, 90.0]}],
        "b": [{"score": 0.8, "segment": [0.0, 48.0]}], "c": [{"score": 0.7, "segment": [0.0, 1.0]}]}})
    write("classes.json", {"results": {
        "a": [{"label": "Ballet", "score": 0.1}, {"label": "Polo", "score": 0.8}, {"label": "Surfing", "score": 0.05}],
        "b": [{"label": "Surfing", "score": 0.6}], "c": [{"label": "Polo", "score": 0.1}], "other": []}})
    write("result_detection.json", "old")
    return with_defaults({"video_info": "info.csv", "video_anno": "anno.json", "result_file": "result.json",
                          "classification_file": "classes.json"})


def evaluate(opt):
    """As main.py does it."""
    return detection.evaluate_detection(opt, ground_truth_of(opt), read_detections(opt["result_file"]))


def write(path, content):
    with open(path, "w") as handle:
        json.dump(content, handle)


def read(path):
    with open(path) as handle:
        return json.load(handle)


def test_detections_are_written_and_evaluated(job, capsys):
    precision = evaluate(job)
    # Polo is found up to tIoU 10/11; one of two Surfing actions is found up to 48/50
    expected = [(1 + 0.5) / 2 if threshold <= 10 / 11 else 0.5 / 2 for threshold in THRESHOLDS]
    np.testing.assert_allclose(precision, expected)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "detections: result_detection.json"
    assert lines[2:6] == ["mAP@0.50 is \t%.4f" % expected[0], "mAP@0.75 is \t%.4f" % expected[5],
                          "mAP@0.95 is \t%.4f" % expected[9],
                          "mAP@0.50:0.05:0.95 is \t%.4f" % float(np.mean(expected))]
    assert not any("FPS" in line or "AR@100" in line for line in lines)
    written = read("result_detection.json")
    assert set(written) == {"version", "results", "external_data"} and set(written["results"]) == {"a", "b", "c"}
    assert written["results"]["a"] == [
        {"label": "Polo", "score": 0.9 * 0.8, "segment": [10.0, 21.0]},
        {"label": "Polo", "score": 0.2 * 0.8, "segment": [40.0, 90.0]},
        {"label": "Ballet", "score": 0.9 * 0.1, "segment": [10.0, 21.0]},
        {"label": "Ballet", "score": 0.2 * 0.1, "segment": [40.0, 90.0]}]


def test_both_forms_give_the_same_detections(job):
    first = evaluate(job)
    rows = read("result_detection.json")
    write("classes.json", {"class": ["Polo", "Surfing", "Ballet"], "results": {
        "v_a": [0.8, 0.05, 0.1], "v_b": [0, 0.6, 0], "c": [0.1, 0, 0]}})
    np.testing.assert_array_equal(evaluate(job), first)
    assert read("result_detection.json")["results"]["a"] == rows["results"]["a"]


def test_a_label_of_another_subset_is_known_and_does_not_count(job):
    ballet = {"label": "Ballet", "score": 0.9}
    before = evaluate(job)
    classes = read("classes.json")
    classes["results"]["c"].append(ballet)
    write("classes.json", classes)
    np.testing.assert_array_equal(evaluate(job), before)


@pytest.mark.parametrize("content, words", [
    ({"results": {"z": [{"label": "Polo", "score": 1}]}}, r"has none of the 3 videos.*\(a, b, c\)"),
    ({"results": {name: [{"label": "Chess", "score": 1}] for name in "abc"}}, r"1 class that.*does not know.*Chess"),
    ({"results": {name: [{"name": "Polo"}] for name in "abc"}}, r"does not hold classes"),
    ({"results": {name: [] for name in "abc"}}, r"does not hold classes"),
    ({"results": {name: [{"label": "Polo", "score": float("nan")}] for name in "abc"}}, r"finite scores"),
    ({"class": ["Polo", "Ballet"], "results": {name: [1] for name in "abc"}}, r"a finite score for each of 2 classes"),
    ({"results": {name: [{"label": ["Polo"], "score": 1}] for name in "abc"}}, r"labels of text or whole numbers"),
    ({"class": [["Polo"]], "results": {name: [1] for name in "abc"}}, r"but a list of labels is needed"),
    ({"results": {name: [{"label": "Polo", "score": 10 ** 400}] for name in "abc"}}, r"does not hold classes"),
    ([1, 2], r"does not hold classes"), ({"results": [1]}, r"does not hold classes")])
def test_a_wrong_classification_file_is_named_and_nothing_is_written(job, content, words):
    write("classes.json", content)
    with pytest.raises(UserError, match=r"classes\.json.*" + words):
        evaluate(job)
    assert read("result_detection.json") == "old"


def test_rows_with_labels_are_measured_as_they_are(job, capsys):
    """Detections of another program: no classes are multiplied into them, and nothing is written."""
    write("result.json", {"results": {
        "v_a": [{"score": 3.0, "segment": [10.0, 21.0], "label": "Polo"}],
        "b": [{"score": 0.8, "segment": [0.0, 48.0], "label": "Surfing"},
              {"score": 0.1, "segment": [60.0, 80.0], "label": "Polo"}]}})
    found = evaluate(dict(job, classification_file=""))
    np.testing.assert_allclose(found, [(1 + 0.5) / 2 if threshold <= 10 / 11 else 0.5 / 2 for threshold in THRESHOLDS])
    assert "its rows have labels" in capsys.readouterr().out and read("result_detection.json") == "old"
    write("result.json", {"results": {"a": [{"score": 1, "segment": [1, 2], "label": 0},
                                            {"score": 1, "segment": [1, 2]}]}})
    with pytest.raises(UserError, match="rows with a label and rows without one"):
        evaluate(job)


def test_videos_without_classes_count_as_missed(job, capsys):
    classes = read("classes.json")
    del classes["results"]["a"]
    write("classes.json", classes)
    np.testing.assert_allclose(evaluate(job), np.full(10, 0.5 / 2))
    assert "lacks 1 of the 3 videos of the result file: counted as missed" in capsys.readouterr().out
    assert set(read("result_detection.json")["results"]) == {"b", "c"}


def test_labels_that_are_whole_numbers(job):
    """Class 0 is a class; numbers, their digits, and numbers with .0 are the same label in every file."""
    first = evaluate(job)
    number = {"Polo": 0, "Surfing": 17, "Ballet": 2.0}
    annotations, classes = read("anno.json"), read("classes.json")
    for rows in [entry["annotations"] for entry in annotations.values()] + list(classes["results"].values()):
        for one in rows:
            one["label"] = number[one["label"]]
    for one in classes["results"]["a"]:
        one["label"] = str(one["label"]).replace(".0", "")
    write("anno.json", annotations)
    write("classes.json", classes)
    np.testing.assert_array_equal(evaluate(job), first)
    assert {row["label"] for row in read("result_detection.json")["results"]["a"]} == {"0", "2"}


def test_files_that_do_not_belong_together_are_refused(job):
    write("result.json", {"results": {"v_z": [{"score": 1, "segment": [0, 1]}]}})
    with pytest.raises(UserError, match=r"result\.json has no proposal of any of the \d videos"):
        evaluate(job)
    assert read("result_detection.json") == "old"


@pytest.mark.parametrize("annotations", [None, [3], 5, [{"label": ["x"]}], [{"segment": [1, 2]}]])
def test_annotations_of_other_subsets_are_not_checked(job, annotations):
    wanted = evaluate(job)
    truth = ground_truth_of(job).actions
    write("own.json", {"database": dict({name: {"subset": "validation", "annotations": [
        {"segment": segment, "label": label} for *segment, label in segments]} for name, segments in truth.items()},
        x={"subset": "testing", "annotations": annotations},
        y={"subset": "training", "annotations": [{"segment": [1, 2], "label": "Ballet"}]})})
    np.testing.assert_array_equal(evaluate(dict(job, ground_truth="own.json")), wanted)


def test_proposals_are_not_overwritten_by_detections(job):
    with pytest.raises(UserError, match=r"result_detection\.json"):
        evaluate(dict(job, result_file="result_detection.json"))
    write("result_detection.json", read("result.json"))
    with pytest.raises(UserError, match="the file that the detections go to"):
        evaluate(dict(job, result_file="result_detection.json"))
    assert read("result_detection.json") == read("result.json")


def test_nothing_to_measure_and_nothing_to_multiply_are_said(job):
    annotations = read("anno.json")
    with pytest.raises(UserError, match=r"proposals without labels: mAP needs the classes of whole videos"):
        evaluate(dict(job, classification_file=""))
    for entry in annotations.values():
        entry["annotations"] = []
    write("anno.json", annotations)
    with pytest.raises(UserError, match="has no action of the 3 videos of the validation subset, so there is no mAP"):
        evaluate(job)


def test_a_class_without_detections_has_no_precision():
    ground_truth = {"a": [(0.0, 10.0, "Polo"), (20.0, 30.0, "Ballet")]}
    detections = {"a": [("Polo", 0.9, [0.0, 10.0])]}
    np.testing.assert_array_equal(detection.mean_average_precision(ground_truth, detections), np.full(10, 0.5))
