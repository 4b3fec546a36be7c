"""AR@AN compared with the reference's figures and with a plain version of the protocol."""
import gc
import json
import os

import numpy as np
import pytest

import detection
import eval as evaluation
from bmn.data.annotations import Video
from bmn.data.ground_truth import ground_truth_of
from bmn.errors import UserError
from bmn.options import with_defaults

THRESHOLDS = np.linspace(0.5, 0.95, 10)
VIDEO = {"duration_second": 100.0, "duration_frame": 3200, "feature_frame": 3200}


def recall_by_the_protocol(ground_truth, proposals, wanted, thresholds):
    """(average numbers, recall), with plain loops over numbers, thresholds, videos and actions."""
    count = sum(map(len, proposals.values()))
    if wanted is None:
        wanted = count / len(ground_truth)
    ratio = wanted * float(len(ground_truth)) / count
    kept = {}
    for name in ground_truth:
        rows = sorted(proposals.get(name, []), key=lambda row: row[0])[::-1]    # of equal scores the later comes first
        kept[name] = rows[:min(len(rows), int(len(rows) * ratio))]
    total = sum(map(len, kept.values()))
    actions = sum(map(len, ground_truth.values()))
    numbers, recall = [], [[] for _ in thresholds]
    for k in range(1, 101):
        pcn = k / 100.0 * (wanted * float(len(ground_truth)) / total)
        numbers.append(pcn * (float(total) / len(ground_truth)))
        for row, threshold in zip(recall, thresholds):
            found = 0
            for name, segments in ground_truth.items():
                looked_at = kept[name][:min(len(kept[name]), int(len(kept[name]) * pcn))]
                for start, end, _ in segments:
                    found += any(overlap(start, end, *one[1:]) >= threshold for one in looked_at)
            row.append(found / float(actions))
    return numbers, recall


def overlap(start, end, first, last):
    inter = max(min(end, last) - max(start, first), 0)
    union = (last - first) + (end - start) - inter
    return inter / union if union else float("nan")


def random_case(rng, most, grid):
    """Videos with fewer than ``most`` proposals on a coarse grid of times and scores; two are not annotated."""
    def segment(shortest):
        start = rng.randint(0, grid)
        return float(start), float(rng.randint(min(start + shortest, grid), grid + 1))
    ground_truth = {"v%d" % v: [(*segment(0), "a") for _ in range(rng.randint(1, 4))] for v in range(7)}
    proposals = {"v%d" % v: np.array([(rng.randint(1, 9) / 8.0, *segment(1)) for _ in range(rng.randint(0, most))]
                                     or np.empty((0, 3))) for v in range(1, 9)}
    return ground_truth, proposals


@pytest.mark.parametrize("name", ["eval", "eval_capped"])
def test_recall_equals_the_reference(golden, shared, name, capsys):
    figures = golden(name + ".npz")
    folder = os.path.join(shared, "golden")
    numbers, mean, recall = evaluation.run_evaluation(
        os.path.join(folder, name + "_ground_truth.json"), os.path.join(folder, name + "_proposals.json"))
    np.testing.assert_allclose(recall, figures["recall"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(mean, figures["avg_recall"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(numbers, figures["proposals_per_video"], rtol=1e-12)
    np.testing.assert_allclose([evaluation.average_recall_at(recall, k) for k in (1, 5, 10, 100)], figures["ar"])
    assert capsys.readouterr().out == "\tArea Under the AR vs AN curve: %s%%\n" % float(figures["auc"])


@pytest.mark.parametrize("wanted", [100, 10, 3, None])
@pytest.mark.parametrize("most, grid", [(5, 4), (30, 10), (150, 1000)])
def test_recall_follows_the_protocol(rng, wanted, most, grid):
    for _ in range(3):
        ground_truth, proposals = random_case(rng, most, grid)
        thresholds = THRESHOLDS[::3]
        numbers, mean, recall = evaluation.average_recall(ground_truth, proposals, wanted, thresholds)
        their_numbers, their_recall = recall_by_the_protocol(
            ground_truth, {name: rows.tolist() for name, rows in proposals.items()}, wanted, thresholds)
        np.testing.assert_allclose(numbers, their_numbers, rtol=1e-12)
        np.testing.assert_allclose(recall, their_recall, rtol=0, atol=1e-12)
        np.testing.assert_allclose(mean, np.mean(their_recall, axis=0), rtol=0, atol=1e-12)


def test_of_equal_scores_the_later_one_is_looked_at_first():
    """As in the official evaluators, whose argsort()[::-1] turns the order of equals around."""
    truth, rows = {"a": [(0.0, 4.0, "x")]}, [(0.5, 50.0, 60.0), (0.5, 0.0, 4.0), (0.7, 70.0, 80.0)]
    recall = evaluation.average_recall(truth, {"a": np.array(rows)})[2]
    assert recall[:, 0].sum() == 0 and recall[:, 1].sum() == 10     # after the best, the last of the equals
    recall = evaluation.average_recall(truth, {"a": np.array([rows[1], rows[0], rows[2]])})[2]
    assert recall[:, 1].sum() == 0 and recall[:, 2].sum() == 10


def test_ids_with_and_without_a_prefix_are_the_same_video(job):
    """... in the ground truth, in the result file or in both, unless one of them has both."""
    wanted = evaluation.evaluation_proposal(job)
    with open("result.json") as handle:
        content = json.load(handle)
    database = official("a", "b", "c")["database"]
    write("own.json", {"database": {"v_" + name: video for name, video in database.items()}})
    found = evaluation.evaluation_proposal(dict(job, ground_truth="own.json"))
    np.testing.assert_array_equal(found.recall, wanted.recall)
    assert list(found.ground_truth) == ["v_a", "v_b", "v_c"] and set(found.proposals) == {"v_a", "v_b", "v_c"}
    write("result.json", {"results": dict(content["results"], v_a=[])})
    with pytest.raises(UserError, match=r"result\.json has a and v_a, and both are video a"):
        evaluation.evaluation_proposal(job)


def test_the_protocol_of_opentad(job):
    """Actions without length and repeated ones do not count; ours are kept, as in the official evaluator."""
    truth = official("a", "b", "c")
    truth["database"]["a"]["annotations"] += [{"segment": [10.0, 20.0004], "label": "Polo"},
                                              {"segment": [3.0, 3.0], "label": "Polo"}]
    write("own.json", truth)
    official_way = evaluation.evaluation_proposal(dict(job, ground_truth="own.json"))
    opentad = evaluation.evaluation_proposal(dict(job, ground_truth="own.json", protocol="opentad"))
    assert [sum(map(len, one.ground_truth.values())) for one in (official_way, opentad)] == [6, 4]
    np.testing.assert_array_equal(opentad.recall, evaluation.evaluation_proposal(job).recall)


def test_the_protocol_of_thumos14(job, capsys):
    """Other numbers and thresholds; actions labelled Ambiguous are no ground truth. AR@AN stops with the proposals."""
    truth = official("a", "b", "c")
    truth["database"]["c"]["annotations"] += [{"segment": [0.0, 1.0], "label": "Ambiguous"}]
    write("own.json", truth)
    result = evaluation.evaluation_proposal(dict(job, ground_truth="own.json", protocol="thumos14"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" is")[0] for line in lines[2:]] == ["AR@50", "AR@100", "AR@200", "AR@500", "AR@1000"]
    thresholds = np.linspace(0.5, 1.0, 11)
    found = [int(t <= 10 / 11) + int(t <= 48 / 50) for t in thresholds]         # of four actions
    assert [float(line.split("\t")[1]) for line in lines[2:]] == [pytest.approx(np.mean(found) / 4, abs=5e-5)] * 5
    assert result.recall.shape == (11, 1000) and sum(map(len, result.ground_truth.values())) == 4


def test_without_actions_there_is_nothing_to_evaluate(job, capsys):
    write("own.json", {"database": {"a": {"subset": "validation", "annotations": []}, "b": {"subset": "validation"}}})
    assert evaluation.evaluation_proposal(dict(job, ground_truth="own.json")) is None
    assert capsys.readouterr().out == ("there is nothing to evaluate: none of the 2 videos of the validation subset "
                                       "has an action in --ground_truth own.json\n")
    assert not os.path.exists("curve.jpg")
    with pytest.raises(UserError, match="no action of a video of subset 'validation'"):
        evaluation.run_evaluation("own.json", "result.json")


def test_without_annotations_a_ground_truth_is_asked_for(job):
    with pytest.raises(UserError, match="there is no ground truth: give --ground_truth, or --video_anno"):
        evaluation.evaluation_proposal({"result_file": "result.json"})


def test_baselines_serve_the_actions_of_training(rng):
    """The best list beats random proposals by far where actions lie in a few places, and knows no video."""
    def videos(count):
        return {"v_%d" % index: Video(100.0, 100.0, 100.0, [
            (spot + rng.rand(), spot + length + rng.rand(), "x")
            for spot, length in ((10, 20), (50, 8)) if rng.rand() < 0.8]) for index in range(count)}
    training, test = videos(60), videos(40)
    truth = {name[2:]: video.actions for name, video in test.items() if video.actions}
    found = evaluation.baselines(truth, training, test)
    assert [name.partition(" (")[0] for name in found] == ["random", "the best list without features"]
    random, best = (evaluation.average_recall_at(curve[2], 5) for curve in found.values())
    assert best > 0.85 and best > random + 0.5
    assert list(evaluation.baselines(truth, {}, test)) == ["random"]
    for start, end in ((12.0, 14.0), (5.0, 5.0)):       # outside the video, or without length: no list meets it
        one = {"a": Video(10.0, 10.0, 10.0, [(start, end, "x")])}
        assert list(evaluation.baselines({"a": [(1.0, 2.0, "x")]}, one, {"a": one["a"]})) == ["random"]


def test_a_tiou_equal_to_the_threshold_counts():
    """An action whose tIoU is exactly 0.5 or 0.75 is found at that threshold."""
    truth = {"a": [(0.0, 4.0, "x")]}
    for end, found in ((2.0, 1), (3.0, 6)):
        recall = evaluation.average_recall(truth, {"a": np.array([[1.0, 0.0, end]])})[2]
        assert recall[:, 99].sum() == found


def test_rounding_is_that_of_the_official_evaluation():
    """The exact tIoU is 1/2; the official order of operations makes it just less, another order does not."""
    truth = {"a": [(261 / 7, 867 / 7, "x")]}
    assert evaluation.average_recall(truth, {"a": np.array([[1.0, 553 / 7, 856 / 7]])})[2].sum() == 0


def test_recall_of_videos():
    truth = {"a": [(0.0, 4.0, "x"), (10.0, 20.0, "x")], "b": [(0.0, 1.0, "x")], "c": [(0.0, 1.0, "x")]}
    proposals = {"a": np.array([[0.1, 10.0, 20.0], [0.9, 0.0, 3.0]]), "c": np.array([[1.0, 0.0, 1.0]])}
    assert evaluation.recall_of_videos(truth, proposals) == {"a": pytest.approx((0.6 + 1) / 2), "b": 0.0, "c": 1.0}
    assert evaluation.recall_of_videos(truth, proposals, 1)["a"] == pytest.approx(0.3)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Options as for the reference, with annotation files and a result file; v_c has no proposal."""
    monkeypatch.chdir(tmp_path)
    actions = {"v_a": [[10.0, 20.0]], "v_b": [[0.0, 50.0], [60.0, 80.0]], "v_c": [[5.0, 6.0]], "v_d": [],
               "v_t": [[0.0, 1.0]]}
    write("anno.json", {name: dict(VIDEO, annotations=[{"segment": one, "label": "Polo"} for one in rows])
                        for name, rows in actions.items()})
    (tmp_path / "info.csv").write_text("video,subset\n" + "".join(
        "%s,%s\n" % (name, "training" if name == "v_t" else "validation") for name in actions))
    write("result.json", {"version": "VERSION 1.3", "external_data": {}, "results": {
        "a": [{"score": 0.2, "segment": [40.0, 90.0]}, {"score": 0.9, "segment": [10.0, 21.0]}],
        "b": [{"score": 0.8, "segment": [0.0, 48.0]}], "c": []}})
    return {"video_info": "info.csv", "video_anno": "anno.json", "result_file": "result.json",
            "save_fig_path": "curve.jpg"}


def write(path, content):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w") as handle:
        json.dump(content, handle)


def official(*names):
    """A ground-truth file's content: the job's actions of these videos."""
    segments = {"a": [[10.0, 20.0]], "b": [[0.0, 50.0], [60.0, 80.0]], "c": [[5.0, 6.0]]}
    return {"version": "", "taxonomy": [], "database": {name: {
        "subset": "validation", "duration": 100.0,
        "annotations": [{"segment": one, "label": "Polo"} for one in segments[name]]} for name in names}}


def test_figures_are_printed_and_drawn(job, capsys):
    result = evaluation.evaluation_proposal(job)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ground truth: derived from info.csv and anno.json")
    assert lines[1] == "no proposals for 1 of 3 videos: counted as missed"
    found = [int(t <= 10 / 11) + int(t <= 48 / 50) for t in THRESHOLDS]
    assert lines[2] == "\tArea Under the AR vs AN curve: %s%%" % evaluation.area_under_curve(*result[2:4])
    assert [line.split("\t")[0] for line in lines[3:]] == ["AR@1 is ", "AR@5 is ", "AR@10 is ", "AR@100 is "]
    assert float(lines[-1].split("\t")[1]) == pytest.approx(np.mean(found) / 4)
    assert list(result.ground_truth) == ["a", "b", "c"]
    with open("curve.jpg", "rb") as handle:
        assert handle.read(2) == b"\xff\xd8"


def test_proposals_in_memory_give_the_same_figures(job, capsys):
    from_file = evaluation.evaluation_proposal(job)
    printed = capsys.readouterr().out
    in_memory = evaluation.evaluation_proposal(dict(job, result_file="elsewhere.json"), from_file.proposals)
    np.testing.assert_array_equal(in_memory.recall, from_file.recall)
    assert capsys.readouterr().out == printed


def test_a_given_ground_truth_comes_before_the_default_and_the_derived_one(job, capsys):
    derived = evaluation.evaluation_proposal(job)
    assert "derived" in capsys.readouterr().out
    write("Evaluation/data/activity_net_1_3_new.json", official("a", "b"))
    default = evaluation.evaluation_proposal(job)
    write("own.json", official("a"))
    own = evaluation.evaluation_proposal(dict(job, ground_truth="own.json"))
    assert [len(one.ground_truth) for one in (derived, default, own)] == [3, 2, 1]
    assert "derived" not in capsys.readouterr().out


@pytest.mark.parametrize("content, words", [
    ({"version": 1}, "holds no object 'results'"), ({"results": {"a": [{"score": 1}]}}, "has no segment"),
    ({"results": {}}, "holds no proposal"), ({"results": {"a": [], "b": []}}, "holds no proposal"),
    ({"results": {"x": [{"score": 1, "segment": [0, 1]}]}}, "no proposal of any of the 3 videos")])
def test_a_wrong_result_file_is_named_and_nothing_is_drawn(job, content, words):
    write("result.json", content)
    with pytest.raises(UserError, match=r"result\.json.*" + words):
        evaluation.evaluation_proposal(job)
    assert not os.path.exists("curve.jpg") and gc.isenabled()


def test_times_that_bend_the_figures_are_told(job, capsys):
    """... and the figures are those of the protocol all the same."""
    truth = official("a", "b", "c")
    truth["database"]["a"]["annotations"] += [{"segment": one, "label": "Polo"}
                                              for one in ([9, 3], [-10, 3], [120, 130])]
    write("own.json", truth)
    write("result.json", {"results": {"a": [{"score": 1, "segment": [3000, 6000]}, {"score": 1, "segment": [9, 3]}]}})
    evaluation.evaluation_proposal(dict(job, ground_truth="own.json"))
    lines = capsys.readouterr().out.splitlines()
    evaluation.run_evaluation("own.json", "result.json")
    assert capsys.readouterr().out.splitlines() == lines[:8] and lines[7].startswith("\tArea Under")
    assert lines[:7] == [
        "--ground_truth own.json: 1 of 7 actions with an end before the start, left out (a)",
        "--ground_truth own.json: 1 of 7 actions with a start before 0 s (a)",
        "--ground_truth own.json: 1 of 7 actions outside the video (a)",
        "no proposals for 2 of 3 videos: counted as missed",
        "result file result.json: 1 of 2 proposals with an end before the start (the first in a): are they [start, "
        "end] in seconds?",
        "result file result.json: 1 of 2 proposals outside the video (the first in a): are they [start, end] in "
        "seconds?",
        "result file result.json: in the median video its last proposal ends at 6000 s, and the last action of the "
        "ground truth at 130 s: are both files in seconds?"]
    detections = {"a": [("Polo", 1.0, [3000, 6000])]}
    said = []
    detection.evaluate_detection(with_defaults(dict(job, ground_truth="own.json")),
                                 ground_truth_of(with_defaults(dict(job, ground_truth="own.json")), said.append),
                                 detections, said.append)
    assert sum("outside the video" in line for line in said) == 2


def test_a_derived_ground_truth_tells_what_is_odd_unless_the_run_does(job, capsys):
    with open("anno.json") as handle:
        content = json.load(handle)
    content["v_b"]["annotations"].append({"segment": [5, 4], "label": "Polo"})
    write("anno.json", content)
    for mode, told in (("evaluate", 1), ("inference", 0)):
        ground_truth_of(with_defaults(dict(job, mode=mode)))
        assert capsys.readouterr().out.count("1 of 5 actions with an end before the start, left out (v_b)") == told


def test_a_number_of_proposals_that_leaves_none_is_refused():
    proposals = {"a": np.ones((1, 3)), "x": np.ones((1000, 3))}
    with pytest.raises(UserError, match="leaves none of the 1001"):
        evaluation.average_recall({"a": [(0, 1, "x")]}, proposals)


def segment(edges, label="x"):
    return {"database": {"a": {"subset": "validation", "annotations": [{"segment": edges, "label": label}]}}}


@pytest.mark.parametrize("content, words", [
    ([1], "a form that is not known"), ({"database": [1]}, "a form that is not known"),
    ({"database": {"a": {"subset": "validation", "annotations": [{"segment": [1], "label": "x"}]}}}, "the segment"),
    (segment([float("nan"), 9]), "nan"), (segment([1, float("inf")]), "inf"), (segment("19"), "'19'"),
    (segment([1, 10 ** 400]), "segment"), (segment([1, 2], ["x"]), "label"),
    ({"database": {"a": {"subset": "testing", "annotations": []}}}, "no video of the subset 'validation'.*'testing'")])
def test_a_wrong_ground_truth_is_named(job, content, words):
    write("own.json", content)
    with pytest.raises(UserError, match=r"own\.json.*" + words):
        evaluation.evaluation_proposal(dict(job, ground_truth="own.json"))


def test_a_missing_or_truncated_result_file_is_named(job):
    with pytest.raises(UserError, match=r"nowhere\.json does not exist"):
        evaluation.evaluation_proposal(dict(job, result_file="nowhere.json"))
    write("own.json", official("a"))
    with pytest.raises(UserError, match=r"nowhere\.json does not exist"):
        evaluation.run_evaluation("own.json", "nowhere.json")
    with pytest.raises(UserError, match=r"nowhere\.json does not exist"):
        evaluation.run_evaluation("nowhere.json", "result.json")
    with open("result.json", "r+") as handle:
        handle.truncate(40)
    with pytest.raises(UserError, match=r"result\.json is not valid JSON"):
        evaluation.evaluation_proposal(job)


def test_baselines_leave_out_what_has_no_length(rng):
    """A ground truth may have more videos than were measured: --skip_missing, or a file of others."""
    truth = {"a": [(10.0, 30.0, "x"), (40.0, 90.0, "x")], "b": [(0.0, 20.0, "x")], "c": [(5.0, 50.0, "x")]}
    videos = {"v_" + name: Video(100.0, 100.0, 100.0, actions) for name, actions in truth.items()}
    whole, part = (evaluation.baselines(truth, videos, some) for some in (videos, {"v_a": videos["v_a"]}))
    assert whole.keys() == part.keys() and evaluation.baselines(truth, videos, {"v_x": videos["v_a"]}) == {}
    for what in part:
        actions_of_a = part[what][2] * 4            # of four actions, only the two of a can be hit
        assert (part[what][2] <= 0.5).all() and np.allclose(actions_of_a, np.round(actions_of_a))
