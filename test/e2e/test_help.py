"""Every script of the project starts and answers --help, from another working directory."""
import os

import pytest
from conftest import ROOT

SCRIPTS = ["main.py"] + sorted(os.path.join(folder, name) for folder in ("tools", "benchmarks")
                               for name in os.listdir(os.path.join(ROOT, folder)) if name.endswith(".py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(workshop, script):
    process = workshop.run(script, "--help")
    assert process.returncode == 0 and process.stderr == "", process.stderr
    assert "usage: %s" % os.path.basename(script) in process.stdout
