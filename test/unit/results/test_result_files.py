"""Result files are written as json writes them, and any spelling is read."""
import json

import numpy as np
import pytest

from bmn.errors import UserError
from bmn.results import result_files


def random_results(rng, videos=6):
    """{id: float64 [n, 3]}: scores down to 1e-12, seconds of all sizes, some of them round."""
    results = {}
    for video in range(videos):
        rows = rng.rand(rng.randint(1, 5), 3) * [1, 10.0 ** rng.randint(-2, 5), 300]
        rows[:, 0] **= rng.choice([1, 4, 20])
        rows[0, 1:] = rng.randint(0, 400, 2) / 4
        results["".join(rng.choice(list("-_aZ09 !:,"), 3)) + str(video)] = rows
    return results


def write(path, results):
    result_files.write_results(path, ((name, result_files.proposals_as_json(rows)) for name, rows in results.items()))


def same(one, other):
    assert list(one) == list(other)
    for name, rows in one.items():
        np.testing.assert_array_equal(rows, other[name])


def test_files_are_written_as_json_writes_them(rng, tmp_path):
    path = str(tmp_path / "result.json")
    for _ in range(20):
        results = random_results(rng)
        write(path, results)
        expected = {"version": "VERSION 1.3", "results": {name: [
            {"score": row[0], "segment": row[1:]} for row in rows.tolist()] for name, rows in results.items()},
            "external_data": {}}
        with open(path) as handle:
            assert handle.read() == json.dumps(expected)
        same(result_files.read_proposals(path), results)


@pytest.mark.parametrize("text", [
    '{"results": {"a": [{"segment": [1, 2.5], "score": 3}]}}', '{"results":{"a":[{"score":3,"segment":[1,2.5]}]}}',
    json.dumps({"results": {"a": [{"score": 3, "segment": [1, 2.5], "label": "x"}], "b": []}}, indent=1)])
def test_other_spellings_are_read(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    np.testing.assert_array_equal(result_files.read_proposals(str(path))["a"], [[3, 1, 2.5]])


@pytest.mark.parametrize("text", ['{"version": "VERSION 1.3", "results": {}, "external_data": {}}',
                                  '{"version": "VERSION 1.3", "results": {"a": []}, "external_data": {}}'])
def test_a_file_without_proposals_is_refused(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError, match=r"result\.json holds no proposal"):
        result_files.read_proposals(str(tmp_path / "result.json"))


def test_a_label_that_is_none_is_refused(tmp_path):
    (tmp_path / "r.json").write_text('{"results": {"a": [{"score": 1, "segment": [1, 2], "label": [3]}]}}')
    with pytest.raises(UserError, match=r"result file .*r\.json: label \[3\] is neither text nor a whole number"):
        result_files.read_detections(str(tmp_path / "r.json"))


@pytest.mark.parametrize("content, words", [
    ([1], "holds no object 'results': it should look like"), ({"version": 1}, "holds no object 'results'"),
    ({"results": [1]}, "holds no object 'results'"), ({"results": {"a": None}}, "video a has None, but a list of prop"),
    ({"results": {"a": {"score": 1}}}, "video a has {'score': 1}, but a list"),
    ({"results": {"b": [], "a": [[1, 2]]}}, r"proposal 1 of video a is \[1, 2\], but an object with score and segment"),
    ({"results": {"a": [{"score": 1}]}}, "proposal 1 of video a has no segment"),
    ({"results": {"a": [{"segment": [1, 2]}]}}, "proposal 1 of video a has no score"),
    ({"results": {"a": [{"score": "high", "segment": [0, 1]}]}}, "proposal 1 of video a has the score 'high', but"),
    ({"results": {"a": [{"score": 1, "segment": [0, 1, 2]}]}}, r"segment \[0, 1, 2\], but \[start, end\] in seconds"),
    ({"results": {"a": [{"score": 1, "segment": [0, 1]}, {"score": 1, "segment": [0]}]}}, r"proposal 2 of.* a .*\[0\]"),
    ({"results": {"a": [{"score": 1, "segment": [0, 1, 2]}, {"score": 1, "segment": [0]}]}}, r"proposal 1 of video a"),
    ({"results": {"a": [{"score": 1, "segment": [[0], [1]]}]}}, r"1 of video a has the segment \[\[0\], \[1\]\]"),
    ({"results": {"a": [{"score": 1, "segment": "12"}]}}, "proposal 1 of video a has the segment '12'"),
    ({"results": {"a": [{"score": 1, "segment": None}]}}, "proposal 1 of video a has the segment None"),
    ({"results": {"a": [{"score": float("nan"), "segment": [0, 1]}]}}, "the score nan, but a finite number"),
    ({"results": {"a": [{"score": "0.9", "segment": [0, 1]}]}}, "the score '0.9', but a finite number"),
    ({"results": {"a": [{"score": True, "segment": [0, 1]}]}}, "the score True"),
    ({"results": {"a": [{"score": [1], "segment": [0, 1]}]}}, r"the score \[1\]"),
    ({"results": {"a": [{"score": 10 ** 400, "segment": [0, 1]}]}}, "the score 1000")])
def test_the_first_proposal_that_cannot_be_used_is_named(tmp_path, content, words):
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"result\.json.*" + words):
        result_files.read_proposals(str(tmp_path / "result.json"))


def random_evaluation(rng):
    """(proposals, actions, lengths) as they usually are: in their videos, some a second beyond the end."""
    proposals, actions, lengths = {}, {}, {}
    for video in range(9):
        name, seconds = "v%d" % video, rng.uniform(20, 200)
        lengths[name] = seconds
        proposals[name] = np.column_stack([rng.rand(20), np.sort(rng.rand(20, 2) * (seconds, seconds + 1), axis=1)])
        actions[name] = [(*np.sort(rng.rand(2) * seconds), "x") for _ in range(rng.randint(1, 4))]
    return proposals, actions, lengths


def test_usual_times_are_no_word_worth(rng):
    for _ in range(50):
        proposals, actions, lengths = random_evaluation(rng)
        proposals["elsewhere"] = proposals["v0"] + (0, 1e6, 1e6)        # its length is not known
        proposals["v8"] = np.empty((0, 3))
        assert result_files.odd_times(proposals, actions, lengths, "r") == []
    assert result_files.odd_times({"v_v0": proposals["v0"]}, {"v_v0": actions["v0"]}, lengths, "r") == []


@pytest.mark.parametrize("factor, outside", [(30, True), (1000, True), (None, False), (1 / 60.0, False)])
def test_times_in_another_unit_are_told(rng, factor, outside):
    """Frames, milliseconds, fractions of the video, minutes."""
    for _ in range(20):
        proposals, actions, lengths = random_evaluation(rng)
        changed = {name: rows * (1, factor or 1 / lengths[name], factor or 1 / lengths[name])
                   for name, rows in proposals.items()}
        for known in (lengths, {}):
            lines = result_files.odd_times(changed, actions, known, "r")
            assert lines[-1].startswith("r: in the median video its last proposal ends at ")
            assert lines[-1].endswith("are both files in seconds?") and len(lines) == 1 + bool(outside and known)
        if outside:
            line = result_files.odd_times(changed, actions, lengths, "r")[0]
            number = sum(int((rows[:, 1] > 1.05 * lengths[name]).sum()) for name, rows in changed.items())
            assert line.startswith("r: %d of 180 proposals outside the video (the first in v" % number)


def test_reversed_proposals_are_told(rng):
    proposals, actions, lengths = random_evaluation(rng)
    proposals["v3"][4, 1:] = 9, 3
    proposals["v7"][:2, 1:] = [[9, 3], [-5, -1]]
    assert result_files.odd_times(proposals, actions, lengths, "r") == [
        "r: 2 of 180 proposals with an end before the start (the first in v3, v7): are they [start, end] in seconds?",
        "r: 1 of 180 proposals outside the video (the first in v7): are they [start, end] in seconds?"]
