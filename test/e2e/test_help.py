"""Every script of the project starts and answers --help, from another working directory."""
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PROGRAMS = ["main.py"] + sorted("tools/" + name for name in os.listdir(os.path.join(ROOT, "tools"))
                                if name.endswith(".py"))
BENCHMARKS = sorted("benchmarks/" + name for name in os.listdir(os.path.join(ROOT, "benchmarks"))
                    if name.endswith(".py"))


@pytest.mark.parametrize("script", PROGRAMS + BENCHMARKS)
def test_help(workshop, script):
    process = workshop.run(script, "--help")
    assert process.returncode == 0 and process.stderr == "", process.stderr
    assert "usage: %s" % os.path.basename(script) in process.stdout


@pytest.mark.parametrize("script", PROGRAMS)
@pytest.mark.parametrize("option", ["--help", "--no_such_option"])
def test_an_answer_does_not_wait_for_imports(tmp_path, script, option):
    process = subprocess.run([sys.executable, "-X", "importtime", os.path.join(ROOT, script), option],
                             cwd=str(tmp_path), capture_output=True, text=True, check=False)
    imported = set(re.findall(r"^import time:.*\| +(\w+)", process.stderr, re.MULTILINE))
    assert (process.returncode == 0) == (option == "--help") and "argparse" in imported
    assert not imported & {"torch", "pandas", "matplotlib", "scipy", "numpy"}


@pytest.mark.parametrize("script", PROGRAMS)
def test_a_missing_package_is_named(tmp_path, script):
    """-S leaves site-packages out, as in a Python without the requirements.

    A program for videos does not ask for a package on a Python that is too old for it.
    """
    needed = {"main.py": [], "tools/predict.py": ["a.csv", "--duration", "1"], "tools/export_onnx.py": ["a", "b"],
              "tools/extract_features.py": ["a.mp4", "--backbone", "b", "--output", "c"],
              "tools/compare_results.py": ["a", "b"],
              "tools/convert_checkpoint.py": ["a", "b", "--to", "ours"],
              "tools/prepare_features.py": ["--input", "a", "--output", "b", "--method", "linear"]}.get(script, [])
    process = subprocess.run([sys.executable, "-S", os.path.join(ROOT, script), *needed], cwd=str(tmp_path),
                             capture_output=True, text=True, check=False,
                             env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    assert process.returncode == 1 and process.stderr.startswith("error: "), process.stderr
    if script in ("tools/extract_features.py", "tools/make_sample_videos.py") and sys.version_info < (3, 11):
        assert process.stderr.startswith("error: videos need Python 3.11 or later")
    else:
        assert "has no package torch" in process.stderr and "requirements.txt" in process.stderr
    assert os.listdir(str(tmp_path)) == []
