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
