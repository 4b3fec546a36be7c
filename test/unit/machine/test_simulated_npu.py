"""Runs test/simulated_npu/checks.py on the simulated NPU."""
import os
import subprocess
import sys

import pytest
import torch


@pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="the simulation needs private parts of a recent PyTorch")
def test_checks_pass_on_the_simulated_npu(root):
    folder = os.path.join(root, "test", "simulated_npu")
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", os.path.join(folder, "checks.py")], cwd=root,
                         env=dict(os.environ, PYTHONPATH=folder), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
