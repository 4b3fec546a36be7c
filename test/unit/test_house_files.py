"""The documents: public addresses are stated and links lead somewhere."""
import glob
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from conftest import ROOT

DOCUMENTS = sorted(glob.glob(os.path.join(ROOT, "*.md")) + glob.glob(os.path.join(ROOT, "docs", "*.md"))
                   + glob.glob(os.path.join(ROOT, "docs", "*", "*.md")))
STATEMENT = "public_address_statement.md"


def test_every_public_address_is_stated():
    sources = [path for folder in ("", "bmn", "bmn/*", "docs", "docs/*", "tools", "benchmarks", "test", "test/*",
                                   "test/*/*")
               for kind in ("*.py", "*.sh", "*.md", "*.txt", "*.toml", "*.html")
               for path in glob.glob(os.path.join(ROOT, folder, kind))]
    stated = Path(ROOT, STATEMENT).read_text(encoding="utf-8")
    missing = {}
    for path in sources:
        for address in re.findall(r"https?://[\w./%#?=&~-]*\w", Path(path).read_text(encoding="utf-8")):
            if address not in stated and not re.match(r"https?://(localhost|127\.)", address):
                missing[address] = os.path.relpath(path, ROOT)
    assert not missing, "add to %s: %s" % (STATEMENT, missing)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: os.path.relpath(path, ROOT))
def test_links_to_files_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", Path(document).read_text(encoding="utf-8"))
    assert [link for link in links if not os.path.exists(os.path.join(os.path.dirname(document), link))] == []


def test_model_levels_are_those_of_the_modelzoo():
    levels = dict(line.split(":") for line in Path(ROOT, "modelzoo_level.txt").read_text().split())
    assert list(levels) == ["FuncStatus", "PerfStatus", "PrecisionStatus"]
    assert set(levels.values()) <= {"OK", "POK", "NOK", "PERFECT"}


@pytest.mark.parametrize("variables, words", [
    (("VENV=none", "PYTHON=no-such-python"), "there is no program PYTHON=no-such-python"),
    (("VENV=",), "give the name of a folder"), (("VENV=a b",), "give the name of a folder")])
@pytest.mark.parametrize("target", ["test", "demo"])
def test_make_refuses_what_it_cannot_use(target, variables, words):
    done = subprocess.run(("make", "-C", ROOT, target) + variables, capture_output=True, text=True, check=False)
    assert done.returncode and words in done.stderr


def test_version_is_the_same_everywhere():
    import bmn
    for name, line in (("pyproject.toml", r'^version = "(.+)"$'), ("CITATION.cff", r"^version: (.+)$")):
        assert re.search(line, Path(ROOT, name).read_text(encoding="utf-8"), re.M).group(1) == bmn.__version__
    assert re.search(r"^## (\S+)", Path(ROOT, "CHANGELOG.md").read_text(encoding="utf-8"), re.M).group(1) == (
        bmn.__version__.partition(".dev")[0])


@pytest.mark.parametrize("document", ["README.md", "docs/architecture.md"])
def test_the_tree_names_every_module(document):
    """... and no module that is not there."""
    text = Path(ROOT, document).read_text(encoding="utf-8")
    tree = re.search(r"```\n(main\.py .*?)```", text, re.S).group(1)
    folders = ("", "bmn/", "bmn/*/") + (("tools/", "benchmarks/") if document == "README.md" else ())
    modules = {os.path.basename(path) for folder in folders for path in glob.glob(os.path.join(ROOT, folder, "*.py"))}
    assert set(re.findall(r"\w+\.py\b", tree)) == modules - {"__init__.py"}


@pytest.mark.parametrize("document", ["README.md", "README.zh-CN.md"])
def test_the_python_of_the_readme_runs(tmp_path, document):
    program, = re.findall(r"```python\n(.*?)```", Path(ROOT, document).read_text(encoding="utf-8"), re.S)
    prepare = """
import os
from bmn.training import checkpoint
from models import BMN
os.makedirs("checkpoint")
checkpoint.save("checkpoint/BMN_best.pth.tar", {"state_dict": BMN({}).state_dict(), "options": {"kept": 100}})
"""
    done = subprocess.run([sys.executable, "-c", prepare + program], cwd=str(tmp_path), capture_output=True, text=True,
                          env=dict(os.environ, PYTHONPATH=ROOT), check=False)
    assert done.returncode == 0 and len(done.stdout.splitlines()) >= 3, done.stderr


@pytest.mark.parametrize("required", ["", "1"])
def test_old_pytorch_that_cannot_be_tried_is_told_and_may_be_required(tmp_path, required):
    path = "/usr/bin:/bin"
    if shutil.which("python3.7", path=path):
        pytest.skip("there is a Python 3.7 in %s" % path)
    environment = {"PATH": path, "HOME": str(tmp_path), "BMN_REQUIRE_LEGACY": required}
    done = subprocess.run(["bash", os.path.join(ROOT, "test", "legacy.sh")], env=environment, capture_output=True,
                          text=True, check=False)
    assert done.returncode == bool(required) and "there is no Python 3.7 here" in done.stdout + done.stderr


def test_make_takes_an_interpreter_by_a_relative_path(tmp_path):
    """... although `make demo` changes the folder."""
    (tmp_path / "python").symlink_to(sys.executable)
    for name in ("Makefile", "requirements.txt", "requirements-test.txt"):
        shutil.copy(os.path.join(ROOT, name), str(tmp_path))
    done = subprocess.run(["make", "-n", "demo", "VENV=none", "PYTHON=./python"], cwd=str(tmp_path),
                          capture_output=True, text=True, check=False)
    assert "cd demo && %s/python ../main.py" % tmp_path in done.stdout


@pytest.mark.parametrize("module, error", [("bmn.data.features", True), ("eval", True), ("convert_checkpoint", True),
                                           ("test_models", True), ("evaluation", False), ("torch.jit", False)])
def test_a_warning_about_our_own_code_is_an_error(module, error):
    with pytest.raises(FutureWarning) if error else pytest.warns(FutureWarning):
        warnings.warn_explicit("soon", FutureWarning, "module.py", 1, module=module)
