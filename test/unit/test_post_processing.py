"""Decoding and soft-NMS against the reference's figures."""
import json
import os

import numpy as np
from formulas import smooth

import post_processing
import score_tables
from defaults import DEFAULTS


def golden_maps():
    return (np.stack([smooth((2, 100, 100), 400 + i) for i in range(6)]),
            np.concatenate([smooth((1, 100), 420 + i) for i in range(6)]),
            np.concatenate([smooth((1, 100), 440 + i) for i in range(6)]))


def test_table_is_the_references(golden):
    confidence_map, start, end = golden_maps()
    table = score_tables.score_table(confidence_map[0], start[0], end[0])
    np.testing.assert_array_equal(table, golden("proposals.npz")["first_table"])


def test_result_file_is_the_references(golden, shared, tmp_path):
    names = [str(name) for name in golden("proposals.npz")["video"]]
    with open(os.path.join(shared, "activitynet_annotations", "anet_anno_action.json")) as handle:
        annotated = json.load(handle)
    kept = post_processing.proposals(*golden_maps(), DEFAULTS)
    path = str(tmp_path / "result.json")
    post_processing.write_result(path, {name: annotated[name] for name in names}, dict(zip(names, kept)))
    with open(path) as handle:
        ours = json.load(handle)
    with open(os.path.join(shared, "golden", "result_proposal.json")) as handle:
        theirs = json.load(handle)
    assert {**ours, "results": 0} == {**theirs, "results": 0}
    assert set(ours["results"]) == set(theirs["results"])
    for name, rows in theirs["results"].items():
        assert [row["segment"] for row in ours["results"][name]] == [row["segment"] for row in rows]
        np.testing.assert_allclose([row["score"] for row in ours["results"][name]], [row["score"] for row in rows],
                                   rtol=1e-13)     # exp of another NumPy differs in the last digit
    assert list(ours["results"]) == [name[2:] for name in names]


def test_small_tables_are_the_references(golden):
    figures = golden("small_nms.npz")
    for scale in (2, 6, 12):
        table, kept = figures["%d/table" % scale], figures["%d/kept" % scale]
        ours = post_processing.soft_nms(table[:, 0], table[:, 1], table[:, 6], DEFAULTS)
        np.testing.assert_allclose(ours, kept, rtol=1e-13)
