"""A short run of test/fuzz.py: damaged files of every kind are read or refused in a sentence."""
import os

import fuzz
import pytest

NEEDS = {"h5": "h5py", "onnx": "onnxruntime"}


@pytest.mark.parametrize("kind", sorted(fuzz.KINDS))
def test_damaged_files_are_read_or_refused(kind, tmp_path):
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind])
        pytest.importorskip("onnx" if kind == "onnx" else "h5py")
    ending, good, reader = fuzz.KINDS[kind]
    path = str(tmp_path / ("v_a" + ending))
    with open(path, "wb") as handle:
        handle.write(good())
    try:
        reader(path)
    except fuzz.UserError as error:         # only because the tensors are small, so that damaging them is quick
        assert "checkpoint" in kind and "x_1d_b.0.weight is (3, 3) there" in str(error)
    counts, problems = fuzz.fuzz(kind, 40, first=100000)
    assert problems == [] and counts["refused"] > 5


@pytest.mark.parametrize("spoilt,words", [
    (lambda path: 1 / 0, "ZeroDivisionError"), (lambda path: os._exit(3), "crashed"),
    (lambda path: open(path + ".new", "w").close(), "open"), (lambda path: os.system("true"), "os.system")])
def test_what_goes_wrong_is_noticed(monkeypatch, spoilt, words):
    if words in ("open", "os.system") and not hasattr(fuzz.sys, "addaudithook"):
        pytest.skip("this Python cannot watch itself")
    monkeypatch.setitem(fuzz.KINDS, "spoilt", (".x", lambda: b"content", spoilt))
    counts, problems = fuzz.fuzz("spoilt", 3)
    assert len(problems) == 3 and counts == {"read": 0, "refused": 0}
    assert all(words in problem for _, problem in problems)
