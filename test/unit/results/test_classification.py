"""Classes of whole videos: each form gives the same classes, and scores that are no probabilities become some."""
import json

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from bmn.errors import UserError
from bmn.results.classification import THUMOS14_COLUMNS, read_classification

LABELS = ["Polo", "Surfing", "Curling", "Ballet", "Judo"]


def soft_max(row):
    return np.exp(row - np.max(row)) / np.exp(row - np.max(row)).sum()


def read(folder, content, names=("a", "b"), labels=LABELS, count=2):
    path = folder / "classes.json"
    path.write_text(json.dumps(content))
    said = []
    return read_classification(str(path), list(names), labels, count, said.append), said


def best(scores, count=2):
    return {name: sorted(zip(LABELS, row), key=lambda pair: -pair[1])[:count] for name, row in scores.items()}


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_every_form_gives_the_same_classes(tmp_path, rng, count):
    scores = {name: rng.rand(5).tolist() for name in ("a", "b")}
    rows = {"v_a": scores["a"], "b": scores["b"], "other": [1, 0, 0, 0, 0]}
    forms = [{"results": {name: [{"label": label, "score": score} for label, score in zip(LABELS, row)]
                          for name, row in rows.items()}},
             {"class": LABELS, "results": rows},
             {"class": LABELS, "results": {name: [row] for name, row in rows.items()}}]
    for form in forms:
        assert read(tmp_path, form, count=count) == (best(scores, count), [])


def test_logits_get_a_soft_max(tmp_path, rng):
    """... in all rows, because a row of logits may by chance lie between 0 and 1."""
    logits = {"a": [0.1, 0.5, 0.2, 0.3, 0.9], "b": [-2.0, 7.5, 3.0, 0.0, 1.0]}
    wanted = best({name: soft_max(row).tolist() for name, row in logits.items()})
    for form in ({"class": LABELS, "results": {name: [row] for name, row in logits.items()}},
                 {"results": {name: [{"label": label, "score": score} for label, score in zip(LABELS, row)]
                              for name, row in logits.items()}}):
        found, (line,) = read(tmp_path, form)
        assert {name: [label for label, _ in pairs] for name, pairs in found.items()} == {
            name: [label for label, _ in pairs] for name, pairs in wanted.items()}
        np.testing.assert_allclose([score for pairs in found.values() for _, score in pairs],
                                   [score for pairs in wanted.values() for _, score in pairs])
        assert "from -2 to 7.5, so they are taken for logits" in line


def test_probabilities_times_a_constant_are_divided_by_it(tmp_path, rng):
    scores = {name: (2 * soft_max(4 * rng.randn(5))).tolist() for name in ("a", "b")}
    assert max(map(max, scores.values())) > 1
    found, (line,) = read(tmp_path, {"class": LABELS, "results": scores})
    np.testing.assert_allclose([score for pairs in found.values() for _, score in pairs],
                               [score / 2 for pairs in best(scores).values() for _, score in pairs])
    assert "sum to 2, so they are divided by it" in line


def test_the_scores_of_untrimmednet(shared):
    """Row n - 1 is video number n; the classes of most test videos are right."""
    with open(shared + "/thumos14_annotations/thumos14.json") as handle:
        database = json.load(handle)["database"]
    truth = {name: {one["label"] for one in video["annotations"]} for name, video in database.items()
             if video["subset"] == "Test"}
    path = shared + "/thumos14_annotations/uNet_test.npy"
    said = []
    found = read_classification(path, list(truth), list(THUMOS14_COLUMNS), 2, said.append)
    assert set(found) == set(truth) and len(said) == 1 and "sum to 2" in said[0]
    scores = np.load(path)
    assert found["video_test_0000004"][0][1] == pytest.approx(
        scores[3, [column - 1 for column in THUMOS14_COLUMNS.values()]].max() / 2)
    right = [pairs[0][0] in truth[name] for name, pairs in found.items()]
    assert np.mean(right) > 0.8
    # Of all ways to give each class a column, the table's tells the videos of the classes best.
    videos = np.array([scores[int(name[-7:]) - 1] for name in truth])
    has = np.array([[label in labels for labels in truth.values()] for label in THUMOS14_COLUMNS])
    gain = np.array([videos[one].mean(0) - videos[~one].mean(0) for one in has])
    assert (linear_sum_assignment(-gain)[1] + 1).tolist() == list(THUMOS14_COLUMNS.values())


@pytest.mark.parametrize("content, words", [
    ({"class": LABELS, "results": {"a": [[0.1] * 5, [0.2] * 5]}}, r"video a has \[\[0.1, .*, but a finite score"),
    ({"class": LABELS, "results": {"a": [0.1] * 4}}, r"video a has \[0.1, .* 0.1\], but a finite score for each of 5"),
    ({"class": LABELS, "results": {"a": [0.1, 0.2, 0.3, 0.4, float("nan")]}}, "nan.*, but a finite score"),
    ({"class": 5, "results": {"a": [1]}}, "does not hold classes: its 'class' is 5, but a list of labels"),
    ([1], "does not hold classes: there is no object 'results'"), ({"results": [1]}, "there is no object 'results'"),
    ({"results": {"v_a": [{"label": "x"}]}}, r"video a has \[{'label': 'x'}\], but a list of .* is needed"),
    ({"results": {"a": None}}, "video a has None, but a list"),
    ({"results": {"a": [{"label": [1], "score": 1}]}}, "video a has .*, but a list"),
    ({"results": {"z": []}}, "none of the 2 videos"),
    ({"results": {"a": [{"label": "Chess", "score": 1}]}}, "1 class that the ground truth does not know"),
    ({"results": {"a": [], "v_a": []}}, "a and v_a, and both are video a")])
def test_what_holds_no_classes_is_refused(tmp_path, content, words):
    with pytest.raises(UserError, match=r"classes\.json.*" + words):
        read(tmp_path, content)


def test_every_row_of_an_array_is_a_video(tmp_path, rng):
    scores = rng.rand(5, 101)
    np.save(str(tmp_path / "x.npy"), scores)
    names = ["video_test_%07d" % number for number in range(7)]
    found = read_classification(str(tmp_path / "x.npy"), names, list(THUMOS14_COLUMNS), 1, lambda line: None)
    columns = np.array(list(THUMOS14_COLUMNS.values())) - 1
    assert {name: pairs[0][0] for name, pairs in found.items()} == {
        name: list(THUMOS14_COLUMNS)[row[columns].argmax()] for name, row in zip(names[1:], scores)}


def test_arrays_of_other_shapes_are_refused(tmp_path):
    for array in (np.zeros(101), np.zeros((5, 100))):
        np.save(str(tmp_path / "x.npy"), array)
        with pytest.raises(UserError, match=r"x\.npy has the shape .*UntrimmedNet's has .* 101 columns"):
            read_classification(str(tmp_path / "x.npy"), ["a"], LABELS, 2)
    (tmp_path / "x.npy").write_text("no array")
    with pytest.raises(UserError, match="not a readable NumPy file"):
        read_classification(str(tmp_path / "x.npy"), ["a"], LABELS, 2)
