"""--profile writes a trace of a few iterations, or says in one sentence why it cannot."""
import os
import types

import pytest
import torch

from bmn.errors import UserError
from bmn.machine import profiling

needs_profiler = pytest.mark.skipif(not hasattr(getattr(torch, "profiler", None), "schedule"),
                                    reason="PyTorch before 1.8.1 has no profiler of steps")


def iterate(count, kind, folder):
    said = []
    with profiling.trace(kind, str(folder) if folder else "", said.append) as steps:
        for _ in range(count):
            torch.ones(3).sum()
            if steps:
                steps.step()
    return said


@needs_profiler
def test_a_trace_of_a_few_iterations(tmp_path):
    folder = tmp_path / "new" / "trace"
    assert iterate(9, "cpu", folder) == ["profile: %s" % folder]
    name, = os.listdir(str(folder))
    text = (folder / name).read_text()
    assert profiling.ACTIVE <= text.count("sum") < 9 * 2, "of these iterations only"


def test_no_folder_means_no_trace(tmp_path):
    assert iterate(9, "cpu", "") == []


@needs_profiler
def test_too_few_iterations_are_reported(tmp_path):
    assert iterate(1, "cpu", tmp_path) == ["profile: too few iterations for a trace"]


@needs_profiler
def test_a_short_epoch_is_traced_to_its_end(tmp_path):
    assert iterate(profiling.WAIT + profiling.WARM_UP + 1, "cpu", tmp_path) == ["profile: %s" % tmp_path]


@needs_profiler
def test_a_trace_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--profile .*file.trace cannot be made"):
        iterate(1, "cpu", tmp_path / "file" / "trace")


@pytest.mark.parametrize("kind", ["cpu", "npu"])
def test_old_pytorch_has_no_profiler_of_steps(monkeypatch, tmp_path, kind):
    """PyTorch 1.5 has none. On an NPU 1.8 and 1.11 have none either, because their torch_npu has none."""
    monkeypatch.setattr(torch, "profiler", None, raising=False)
    monkeypatch.setitem(profiling.sys.modules, "torch_npu", types.SimpleNamespace())
    with pytest.raises(UserError, match=r"--profile needs PyTorch 1\.8\.1 or later, on an NPU torch_npu 2\.1"):
        profiling.find(kind, str(tmp_path / "trace"))
    assert not (tmp_path / "trace").exists()
