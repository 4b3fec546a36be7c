"""--profile: a trace of a few iterations, by whichever profiler there is."""
import os
import types

import pytest
import torch

from bmn.errors import UserError
from bmn.machine import profiling


def iterate(count, kind, folder):
    said = []
    with profiling.trace(kind, str(folder) if folder else "", said.append) as steps:
        for _ in range(count):
            torch.ones(3).sum()
            steps.step()
    return said


def test_a_trace_of_a_few_iterations(tmp_path):
    folder = tmp_path / "new" / "trace"
    assert iterate(9, "cpu", folder) == ["profile: %s" % folder]
    name, = os.listdir(str(folder))
    text = (folder / name).read_text()
    assert profiling.ACTIVE <= text.count("sum") < 9 * 2, "of these iterations only"


def test_nothing_without_a_folder(tmp_path):
    assert iterate(9, "cpu", "") == []


def test_too_few_iterations(tmp_path):
    assert iterate(1, "cpu", tmp_path) == ["profile: too few iterations for a trace"]


def test_a_short_epoch_is_traced_to_its_end(tmp_path):
    assert iterate(profiling.WAIT + profiling.WARM_UP + 1, "cpu", tmp_path) == ["profile: %s" % tmp_path]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--profile .*file.trace cannot be made"):
        iterate(1, "cpu", tmp_path / "file" / "trace")


def test_the_profiler_of_old_pytorch(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "profiler", None, raising=False)
    sums = {}
    for count in (3, 9):                # one iteration is left for the trace, or more than enough
        folder = tmp_path / str(count)
        iterate(count, "cpu", folder)
        assert os.listdir(str(folder)) == ["trace.json"]
        sums[count] = (folder / "trace.json").read_text().count('sum"')
    assert sums[3] > 0 and sums[9] == profiling.ACTIVE * sums[3]


def test_the_old_profiler_of_an_npu(monkeypatch, tmp_path):
    """As NPUs have it on PyTorch 1.8: torch.autograd.profiler.profile(use_npu=True)."""
    made = []

    class Profile:
        def __init__(self, **how):
            made.append(how)

        def __enter__(self):
            made.append("on")

        def __exit__(self, *error):
            made.append("off")

        def export_chrome_trace(self, path):
            made.append(os.path.basename(path))
    monkeypatch.setitem(profiling.sys.modules, "torch_npu", types.SimpleNamespace())
    monkeypatch.setattr(torch.autograd.profiler, "profile", Profile)
    iterate(9, "npu", tmp_path)
    assert made == [{"use_npu": True}, "on", "off", "trace.json"]
