"""Decoding, and the CSV tables: exact digits, exact columns, whole files."""
import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from formulas import smooth
from oracles import candidates_by_definition

from bmn.errors import UserError
from bmn.results import score_tables


def maps_of(rng, scale):
    return (rng.rand(2, scale, scale).astype(np.float32), rng.rand(scale).astype(np.float32),
            rng.rand(scale).astype(np.float32))


def test_table_equals_the_reference(golden):
    table = score_tables.score_table(smooth((2, 100, 100), 400), smooth((1, 100), 420)[0], smooth((1, 100), 440)[0])
    np.testing.assert_array_equal(table, golden("proposals.npz")["first_table"])


def test_decoding_equals_the_plain_loop(rng):
    confidence_map, start, end = maps_of(rng, 7)
    expected = [start[s] * end[j + 1] * confidence_map[1, s, j] * confidence_map[0, s, j]
                for s in range(7) for j in range(7) if s < j + 1 < 7]
    np.testing.assert_array_equal(score_tables.decode(confidence_map[None], start[None], end[None]), [expected])


@pytest.mark.parametrize("layout,max_duration", [
    ("reference", 0), ("reference", 4), ("reference2019", 0), ("mmaction2", 0), ("mmaction2", 5), ("opentad", 0),
    ("opentad", 4)])
def test_a_layout_proposes_what_its_own_rule_proposes(rng, tmp_path, layout, max_duration):
    for scale in (6, 13):
        for levels in (3, 10 ** 6):         # few levels make plateaus and equal scores
            maps = [(rng.randint(1, levels, shape) / np.float32(levels)).astype(np.float32)
                    for shape in ((2, scale, scale), (scale,), (scale,))]
            found = candidates_by_definition(maps[1], maps[2], *maps[0], layout, max_duration)
            table = score_tables.score_table(*maps, layout, max_duration)
            assert {(row[0], row[1]): row[6] for row in table} == found and len(table) == len(found)
            np.testing.assert_array_equal(
                table[:, 6], (table[:, 2].astype(np.float32) * table[:, 3].astype(np.float32)
                              * table[:, 4].astype(np.float32) * table[:, 5].astype(np.float32)))
            if found:
                score_tables.write_table(str(tmp_path / "v.csv"), *maps, layout, max_duration)
                np.testing.assert_array_equal(score_tables.read_table(str(tmp_path / "v.csv")).T, table[:, [0, 1, 6]])


@pytest.mark.parametrize("installed", [True, False], ids=["orjson", "pandas"])
@pytest.mark.parametrize("scale", [2, 13, 100])
def test_written_table_holds_every_digit(rng, tmp_path, monkeypatch, scale, installed):
    """Maps of all magnitudes, the smallest float32 among them."""
    if installed:
        pytest.importorskip("orjson")
    else:
        monkeypatch.setattr(score_tables, "orjson", None)
    maps = [one * (10.0 ** (-12 * rng.rand(*one.shape))).astype(np.float32) for one in maps_of(rng, scale)]
    maps[1][0] = 1e-45
    path = str(tmp_path / "v_a.csv")
    score_tables.write_table(path, *maps)
    with open(path, newline="") as handle:
        header, *rows = csv.reader(handle)
    assert header == ["xmin", "xmax", "xmin_score", "xmax_score", "clr_score", "reg_socre", "score"]
    table = score_tables.score_table(*maps)
    assert [[float(cell) for cell in row] for row in rows] == table.tolist()
    np.testing.assert_array_equal(score_tables.read_table(path).T, table[:, [0, 1, 6]])


def test_export_writes_every_table_and_nothing_else(rng, tmp_path):
    maps = [maps_of(rng, 9) for _ in range(20)]
    folder = str(tmp_path / "deep" / "tables")
    with score_tables.CsvExport(folder, 2) as export:
        for first in range(0, 20, 3):
            export.add(["v_%d" % i for i in range(first, min(first + 3, 20))],
                       *(np.stack(one) for one in zip(*maps[first:first + 3])))
    assert sorted(os.listdir(folder)) == sorted("v_%d.csv" % i for i in range(20))
    for i, one in enumerate(maps):
        np.testing.assert_array_equal(score_tables.read_table(os.path.join(folder, "v_%d.csv" % i))[2],
                                      score_tables.score_table(*one)[:, 6])


def test_export_that_cannot_write_says_so(rng, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), \
            score_tables.CsvExport(str(tmp_path / "file" / "tables"), 1) as export:
        export.add(["v_a"], *(one[None] for one in maps_of(rng, 5)))


def test_export_ends_with_the_error_of_its_caller(rng, tmp_path):
    with pytest.raises(KeyError), score_tables.CsvExport(str(tmp_path), 1) as export:
        export.add(["v_a"], *(one[None] for one in maps_of(rng, 5)))
        raise KeyError("the network failed")


def test_a_lost_helper_is_reported(rng, tmp_path):
    maps = [one[None] for one in maps_of(rng, 5)]
    with pytest.raises(UserError, match=r"died.*--save_csv 0"), score_tables.CsvExport(str(tmp_path), 1) as export:
        export.add(["v_a"], *maps)
        for helper in export.pool.helpers:
            os.kill(helper.pid, signal.SIGKILL)
        for _ in range(100):
            export.add(["v_a"], *maps)
            time.sleep(0.05)


def test_helpers_end_with_a_killed_parent(root, tmp_path):
    program = """
import sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np
from bmn.results import score_tables
with score_tables.CsvExport(sys.argv[2], 2) as export:
    for name in "ab":
        export.add([name], np.ones((1, 2, 5, 5), np.float32), *np.ones((2, 1, 5), np.float32))
    print(*[helper.pid for helper in export.pool.helpers], flush=True)
    time.sleep(3600)
"""
    with subprocess.Popen([sys.executable, "-c", program, root, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        helpers = parent.stdout.readline().split()
        parent.kill()
    assert helpers
    deadline = time.time() + 300
    while any(is_running(int(pid)) for pid in helpers) and time.time() < deadline:
        time.sleep(0.1)
    assert not any(is_running(int(pid)) for pid in helpers)


def is_running(pid):
    try:
        with open("/proc/%d/stat" % pid) as handle:
            return handle.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
